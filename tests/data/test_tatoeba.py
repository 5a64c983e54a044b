"""The corpus of the English-German model, made of its download: the pairs that the results are on, in their order."""

import random

import pytest
from conftest import SAMPLE

from training import corpus
from training.data.tatoeba import pair_key, read_split

ATTRIBUTION = "\tCC-BY 2.0 (France) Attribution: tatoeba.org #1 (x) & #2 (y)"


def fixture_pairs() -> list[tuple[str, str]]:
    return list(
        zip(*((SAMPLE / f"test.{side}").read_text("utf-8").split("\n")[:-1] for side in ("en", "de")), strict=True)
    )


def write_download(file, pairs, last: str = ATTRIBUTION) -> list[str]:
    file.write_text("".join(f"{source}\t{target}{last}\n" for source, target in pairs), "utf-8")
    return ["--download", str(file), "--output_folder", str(file.parent / "text")]


def read_pairs(tmp_path, name: str) -> list[tuple[str, str]]:
    sides = ((tmp_path / "text" / f"{name}.{side}").read_text("utf-8").split("\n")[:-1] for side in ("en", "de"))
    return list(zip(*sides, strict=True))


def test_the_table_has_the_test_text_in_its_order():
    split = read_split()
    assert list(map(pair_key, fixture_pairs())) == split["test"] and len(split["test"]) == 1000
    assert len(split["valid"]) == 2000 and len({*split["valid"], *split["test"]}) == 3000


def test_an_edition_that_lacks_pairs_is_taken_if_asked(tmp_path):
    shuffled = random.Random(0).sample(fixture_pairs(), 1000)
    flags = write_download(tmp_path / "deu.txt", [*shuffled[:-1], ("One more.", "Noch einer.")])
    with pytest.raises(ValueError, match=r"lacks pairs, \{'valid': 2000, 'test': 1\}.*--allow_missing"):
        corpus.main(flags)
    assert not (tmp_path / "text").exists()
    result = corpus.main([*flags, "--allow_missing"])
    assert read_pairs(tmp_path, "test") == [pair for pair in fixture_pairs() if pair != shuffled[-1]]
    assert read_pairs(tmp_path, "train") == [("One more.", "Noch einer.")] and read_pairs(tmp_path, "valid") == []
    assert result["missing"] == {"valid": 2000, "test": 1} and result["test"] == 999


@pytest.mark.parametrize("last", [ATTRIBUTION, ""])
def test_what_is_not_held_out_is_training_text(tmp_path, monkeypatch, last):
    held_out = {"valid": [("Go.", "Geh."), ("Hi.", "Hallo!")], "test": [("A\u2028b.", "C.")]}
    monkeypatch.setattr(
        corpus, "read_split", lambda: {name: list(map(pair_key, pairs)) for name, pairs in held_out.items()}
    )
    train = [("Run!", "Lauf!"), ("Run!", "Laufen Sie!"), ("Who?", "Wer?")]
    of_both = [("Hi.", "Hi."), ("Leave.", "Geh.")]  # a sentence of validation text on either side
    flags = write_download(
        tmp_path / "deu.txt",
        [train[0], *reversed(held_out["valid"]), *train[1:], of_both[0], *held_out["test"], train[0], of_both[1]],
        last,
    )
    result = corpus.main(flags)
    assert {name: read_pairs(tmp_path, name) for name in ("train", "valid", "test")} == {"train": train, **held_out}
    counts = {"train": 3, "valid": 2, "test": 1}
    assert result == {**counts, "missing": {"valid": 0, "test": 0}, "left_out_as_overlapping": 2}
    with pytest.raises(FileExistsError, match=r"train\.en exists.*--output_folder, or give --overwrite"):
        corpus.main(flags)
    assert corpus.main([*flags, "--overwrite"]) == result


@pytest.mark.parametrize("line", ["no tab", "Go.\t", "\tGeh.", "a\tb\tc\td"])
def test_a_file_of_another_form_is_refused(tmp_path, line):
    flags = write_download(tmp_path / "deu.txt", [("Go.", "Geh.")])
    with (tmp_path / "deu.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"deu\.txt, line 2: no English, tab, German"):
        corpus.main(flags)
    with pytest.raises(FileNotFoundError, match="no text file"):
        corpus.main(["--download", str(tmp_path / "none"), *flags[2:]])
