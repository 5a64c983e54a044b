"""From text to batches: nothing is lost, misaligned or repeated, and what is left out is counted."""

import copy
import itertools
import json
import math
import multiprocessing
import os
import pickle
import resource
import signal
import time
import warnings
from fractions import Fraction
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset
from digits import make_digit_pairs, write_digits
from tokenizers import Regex, normalizers
from torch.utils.data import DataLoader

import training.data.encoding
from lvnar_hf import LvnarTokenizer, train_tokenizer
from lvnar_hf.ctc_lvnar import num_ctc_cells
from lvnar_hf.files.text import check_parallel
from tests.data.test_corpora import aspec, aspec_lines, own_cache, write  # noqa: F401
from training import time_data
from training.data.batching import TokenBudgetBatchSampler, TranslationCollator
from training.data.corpora import load_pairs, load_text_pairs
from training.data.encoding import REASONS, tokenize_pairs, tokenizer_fingerprint
from training.data.text_encoder import SideEncoder
from training.data.tokenized_pairs import TokenizedPairs, pair_lengths


@pytest.fixture
def text(write, sample_texts):  # noqa: F811
    """The 300 sentences of the sample, in files; a function, since a run begins by reading."""
    files = [write(f"x.{side}", texts) for side, texts in zip(("en", "de"), sample_texts, strict=True)]
    return lambda: load_text_pairs(files[:1], files[1:])


def counts_of(**counts: int) -> dict[str, int]:
    return {**dict.fromkeys(("kept", *REASONS), 0), **counts}


# ids

HOSTILE_TEXTS = [
    *(
        "a",
        " a b",
        "a  b ",
        "a b",
        "A man's man, 3.14% (sic!)",
        "Häuser, Straße",
        "\u00a0a \u3000 b\u3000c",
        "a \u200b b",
    ),
    *(
        "a \u0301b",
        "\u0301a b",
        "e\u0301 \u00e9 \u00a8 \u00b4x",
        "x \u037a \ufdfa \ufb01 \u2460",
        "a\tb c\x1cd \x1f e\u2028f",
    ),
    *(
        "</s> <pad> </s>",
        "</ s> <0x41> <0x 41>",
        "\u2581 a\u2581b \u2581",
        "\u00ad a \u00ad",
        "\ufeffa \ufeff",
        "𝄞 🏳️\u200d🌈 \u200d x",
    ),
    *(
        "日本語 の 文。",
        "日本語の文。",
        "각 \u1100\u1161 가",
        "x" * 41 + " y",
        "y " + "x" * 40,
        "\x00 \x7f a",
        "a" + " b" * 100,
    ),
]


def hostile_tokenizers(texts: tuple[list[str], list[str]]) -> dict[str, LvnarTokenizer]:
    two = {"joint": False, "vocab_size": 500, "min_character_count": 3}
    tokenizers = {form: train_tokenizer(*texts, normalization=form, **two) for form in ("nfc", "nfkc", "none")}
    # Of this package's, none keeps two spaces or one at an end; others might.
    tokenizers["spaces kept"] = train_tokenizer(*texts, **two)
    one_space = normalizers.Replace(Regex(" +"), " ")
    tokenizers["spaces kept"].backend_tokenizer.normalizer = normalizers.NFKC()
    tokenizers["spaces kept"].target_backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), one_space]
    )
    tokenizers["moses, fugashi"] = train_tokenizer(
        *texts, source_segmenter="moses", target_segmenter="fugashi", source_language="en", **two
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizers["sentencepiece"] = train_tokenizer(*texts, algorithm="sentencepiece", vocab_size=500)
    return tokenizers


def test_words_together_have_the_ids_of_their_sentence(sample_texts):
    """Whatever stands at a text's beginning, end or middle, and in whatever order it was first seen."""
    for name, tokenizer in hostile_tokenizers(sample_texts).items():
        for is_target in (False, True):
            encode = SideEncoder(tokenizer, is_target, np.dtype(np.uint16))
            assert encode.backend is not None, name
            texts = [
                *HOSTILE_TEXTS,
                *reversed(HOSTILE_TEXTS),
                *(f"{x} {y}" for x in HOSTILE_TEXTS for y in HOSTILE_TEXTS),
            ]
            texts += sample_texts[is_target]
            expected = tokenizer(text_target=texts) if is_target else tokenizer(texts)
            for start in range(0, len(texts), 100):
                part = texts[start : start + 100]
                for one, encoded, ids in zip(part, encode(part), expected["input_ids"][start:], strict=False):
                    assert np.frombuffer(encoded, np.uint16).tolist() == ids, (name, one)
            assert len(encode.cache) > 100


def test_few_words_are_remembered_at_a_time(sample_tokenizer, sample_texts, monkeypatch):
    monkeypatch.setattr(training.data.text_encoder, "CACHED_WORDS", 30)
    encode = SideEncoder(sample_tokenizer, False, np.dtype(np.uint16))
    for one, ids in zip(sample_texts[0], sample_tokenizer(sample_texts[0])["input_ids"], strict=True):
        assert np.frombuffer(encode([one])[0], np.uint16).tolist() == ids
        assert len(encode.cache) < 80


def test_padding_and_truncation_of_an_earlier_call_do_not_last(text, sample_tokenizer):
    expected = tokenize_pairs(text(), sample_tokenizer, 40, 20)[0].to_dict()
    tokenizer = copy.deepcopy(sample_tokenizer)
    tokenizer(["a b c", "a"], padding=True, truncation=True, max_length=2)
    assert tokenize_pairs(Dataset.from_list(list(text())), tokenizer, 40, 20)[0].to_dict() == expected


def test_the_type_of_the_ids_holds_the_vocabulary(sample_tokenizer, text, monkeypatch):
    assert tokenize_pairs(text(), sample_tokenizer, 40, 20)[0].features["labels"].feature.dtype == "uint16"
    monkeypatch.setattr(type(sample_tokenizer), "__len__", lambda self: (1 << 16) + 1)
    large = tokenize_pairs(Dataset.from_list(list(text())), sample_tokenizer, 40, 20)[0]
    assert large.features["labels"].feature.dtype == "int32"


# cleaning


def test_pairs_that_are_left_out_are_counted_by_reason(write, sample_tokenizer):  # noqa: F811
    long = " ".join("abcdefghijk")
    num_long = len(sample_tokenizer(long)["input_ids"])
    source = ["Tom", "", "Tom", " \t", long, long, "Tom", "Tom ist da", "Tom ist da"]
    target = ["Tom", "Tom", "\u3000", "", long, "Tom", long + " l m", "Tom is here", "Tom is here"]
    pairs = load_text_pairs([write("x.en", source)], [write("x.de", target)])
    kept, counts = tokenize_pairs(pairs, sample_tokenizer, max_length=num_long, max_length_offset=num_long - 3)
    assert counts == counts_of(kept=4, empty=3, too_long=1, length_difference=1)
    assert sum(counts.values()) == len(source)
    assert kept["row_id"][:] == [0, 4, 7, 8]
    assert set(kept.column_names) == {"row_id", "input_ids", "labels", "source_length", "target_length"}
    for row in kept:
        assert row["input_ids"] == sample_tokenizer(source[row["row_id"]])["input_ids"]
        assert row["labels"] == sample_tokenizer(text_target=target[row["row_id"]])["input_ids"]
        assert (row["source_length"], row["target_length"]) == (len(row["input_ids"]), len(row["labels"]))
        assert row["input_ids"][-1] == row["labels"][-1] == sample_tokenizer.eos_token_id


def test_the_limits_are_inclusive_and_the_reasons_have_an_order(write, sample_tokenizer):  # noqa: F811
    pairs = load_text_pairs([write("x.en", ["a b c d"])], [write("x.de", ["a"])])
    longest = len(sample_tokenizer("a b c d")["input_ids"])
    shortest = len(sample_tokenizer("a")["input_ids"])
    difference, ratio = longest - shortest, longest / shortest
    for max_length, max_offset, max_ratio, reason in (
        (longest, difference, ratio, "kept"),
        (longest, difference, 0.0, "kept"),
        (longest - 1, difference - 1, ratio - 0.01, "too_long"),
        (longest, difference - 1, ratio - 0.01, "length_ratio"),
        (longest, difference - 1, ratio, "length_difference"),
        (longest, difference - 1, 0.0, "length_difference"),
    ):
        _, counts = tokenize_pairs(pairs, sample_tokenizer, max_length, max_offset, max_length_ratio=max_ratio)
        assert counts == counts_of(**{reason: 1})


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.4, 2.0, 3.0])
def test_pairs_that_ctc_cannot_align_are_left_out(text, write, sample_tokenizer, ratio):  # noqa: F811
    """As brute force says it: cells, and a blank between equal neighbours."""
    repeats = write("y.en", ["a", "a b", "a b c d e"]), write("y.de", ["b b b b b", "b b b", "b b b b b"])
    for pairs in (text(), load_text_pairs(repeats[:1], repeats[1:])):
        expected = []
        for row in pairs:
            source = sample_tokenizer(row["source"])["input_ids"]
            target = sample_tokenizer(text_target=row["target"])["input_ids"]
            needed = len(target) + sum(one == other for one, other in itertools.pairwise(target))
            if needed <= math.ceil(Fraction(str(ratio)) * len(source)):
                expected.append(row["row_id"])
        kept, counts = tokenize_pairs(pairs, sample_tokenizer, 200, None, upsampling_ratio=ratio)
        assert kept["row_id"][:] == expected
        assert counts == counts_of(kept=len(expected), not_alignable=len(pairs) - len(expected))
        assert tokenize_pairs(pairs, sample_tokenizer, 200, None)[1] == counts_of(kept=len(pairs))


def test_cells_are_counted_as_if_ratios_were_exact():
    for ratio in ("0.5", "1.1", "1.4", "2.0", "2.1", "3.3"):
        for length in range(1, 400):
            assert num_ctc_cells(length, float(ratio)) == math.ceil(Fraction(ratio) * length)


def test_a_ratio_without_cells_is_refused(text, sample_tokenizer):
    with pytest.raises(ValueError, match="upsampling_ratio is 0; it must be above 0, or None"):
        tokenize_pairs(text(), sample_tokenizer, 40, None, upsampling_ratio=0)


def test_a_ratio_is_of_the_longer_side_whichever_it_is(write, sample_tokenizer):  # noqa: F811
    pairs = load_text_pairs([write("x.en", ["a", "a b c d"])], [write("x.de", ["a b c d", "a"])])
    _, counts = tokenize_pairs(pairs, sample_tokenizer, 40, 20, max_length_ratio=1.5)
    assert counts == counts_of(length_ratio=2)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_duplicates_are_pairs_that_were_kept_before(write, sample_tokenizer, monkeypatch, num_workers):  # noqa: F811
    monkeypatch.setattr(training.data.encoding, "CHUNK_SIZE", 4)  # so that some are in chunks apart
    long = " ".join("abcdefghijk")
    source = ["a", "b", "a", "a", "ab", "a ", "b", long, long, "a", "a"]
    target = ["x", "y", "x", "y", "y", "x", "y", "x", "x", "x", "x"]
    pairs = load_text_pairs([write("x.en", source)], [write("x.de", target)])
    for remove, expected, row_ids in (
        (True, counts_of(kept=5, too_long=2, duplicate=4), [0, 1, 3, 4, 5]),
        (False, counts_of(kept=9, too_long=2), [0, 1, 2, 3, 4, 5, 6, 9, 10]),
    ):
        kept, counts = tokenize_pairs(pairs, sample_tokenizer, 10, 9, remove_duplicates=remove, num_workers=num_workers)
        assert counts == expected
        assert kept["row_id"][:] == row_ids
        assert [sample_tokenizer.decode(ids, skip_special_tokens=True) for ids in kept["input_ids"]] == [
            source[row].strip() for row in row_ids
        ]


def test_malformed_lines_are_counted_apart_from_empty_ones(write, tmp_path, sample_tokenizer):  # noqa: F811
    good = aspec_lines([("Tom", "Tom"), ("", "Tom")])
    write("train/train-1.txt", [good[0], good[0] + " ||| x", good[1], good[0]])
    with pytest.warns(UserWarning, match=r"train-1\.txt, line 2 is left out"):
        kept, counts = tokenize_pairs(load_pairs(aspec(tmp_path, aspec_parts=[1]), "train"), sample_tokenizer, 40, 20)
    assert counts == counts_of(kept=2, malformed=1, empty=1)
    assert kept["row_id"][:] == [0, 3]


def test_the_number_of_workers_does_not_show(text, sample_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(training.data.encoding, "CHUNK_SIZE", 7)
    results = []
    for num_workers in (1, 2, 5):
        folder = tmp_path / str(num_workers)
        kept, counts = tokenize_pairs(
            text(), sample_tokenizer, 30, 8, remove_duplicates=True, num_workers=num_workers, cache_folder=folder
        )
        (file,) = folder.glob("pairs-*/pairs.arrow")
        results.append((kept.to_dict(), counts, file.read_bytes()))
    assert results[0] == results[1] == results[2]
    assert 100 < results[0][1]["kept"] < 300


def test_an_error_in_a_worker_or_in_the_text_comes_out(text, sample_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(training.data.encoding, "CHUNK_SIZE", 20)
    with (Path(tmp_path) / "x.de").open("ab") as file:
        file.write(b"\xff\n")
    with pytest.raises(ValueError, match=r"x\.de, line 301: not valid UTF-8"):
        tokenize_pairs(text(), sample_tokenizer, 40, 20, num_workers=2)
    rows = list(Dataset.from_list([{"row_id": i, "source": "a b", "target": "a"} for i in range(100)]))
    monkeypatch.setattr(SideEncoder, "_to_bytes", lambda self, ids: [][1])
    with pytest.raises(IndexError):
        tokenize_pairs(Dataset.from_list(rows), sample_tokenizer, 40, 20, num_workers=2)


# what is kept on disk


def fail(*arguments):
    raise AssertionError("tokenised again")


@pytest.fixture
def only_read(monkeypatch):
    """From when it is called, a text that is tokenised fails the test."""
    return lambda: monkeypatch.setattr(training.data.encoding.PairEncoder, "__call__", fail)


def test_the_same_text_is_tokenised_once(text, sample_tokenizer, tmp_path, only_read):
    first, counts = tokenize_pairs(text(), sample_tokenizer, 40, 20)
    only_read()
    second, same_counts = tokenize_pairs(text(), sample_tokenizer, 40, 20, num_workers=2)
    assert first.to_dict() == second.to_dict() and counts == same_counts
    # Neither the position limit of a model nor where the tokenizer lies changes an id.
    sample_tokenizer.save_pretrained(tmp_path / "tokenizer")
    tokenizer = LvnarTokenizer.from_pretrained(tmp_path / "tokenizer")
    tokenizer.model_max_length = 99
    assert tokenize_pairs(text(), tokenizer, 40, 20)[1] == counts
    assert [path.parent.parent for path in (tmp_path / "cache").rglob("*.arrow")] == [tmp_path / "cache" / "lvnar_hf"]


def test_another_text_tokenizer_or_argument_is_tokenised_anew(write, sample_tokenizer, sample_texts):  # noqa: F811
    source, target = write("x.en", ["The cat sat. a b c", "Tom"]), write("x.de", ["Die Katze.", "Tom"])
    expected = [sample_tokenizer(["The cat sat. a b c", "Tom"])["input_ids"]]

    def ids(tokenizer=sample_tokenizer, max_length=40, **changes):
        pairs = load_text_pairs([source], [target])
        return tokenize_pairs(pairs, tokenizer, max_length, changes.pop("offset", 20), **changes)[0]["input_ids"][:]

    assert ids() == expected[0]
    stamp = os.stat(source)
    write("x.en", ["The dog sat. a b c", "Tom"])
    os.utime(source, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # of the same size and time
    assert ids() == sample_tokenizer(["The dog sat. a b c", "Tom"])["input_ids"] != expected[0]
    other = train_tokenizer(*sample_texts, vocab_size=400, min_character_count=3)
    assert ids(other) == other(["The dog sat. a b c", "Tom"])["input_ids"] != ids()
    assert len(ids(max_length=3)) == 1 and len(ids(offset=1)) == 1 and len(ids(max_length_ratio=1.1)) == 1
    write("x.en", ["Tom", "Tom"])
    write("x.de", ["Tom", "Tom"])
    assert len(ids()) == 2 and len(ids(remove_duplicates=True)) == 1


def test_a_flipped_bit_in_the_cache_is_not_read(write, sample_tokenizer):  # noqa: F811
    files = [write("x.en", ["The cat sat. a b c", "Tom"])], [write("x.de", ["Die Katze.", "Tom"])]

    def ids():
        return tokenize_pairs(load_text_pairs(*files), sample_tokenizer, 40, 20)[0]["input_ids"][:]

    expected = ids()
    (file,) = Path(datasets.config.HF_DATASETS_CACHE).rglob("pairs.arrow")
    content = bytearray(file.read_bytes())
    position = content.index(np.array(expected[0], np.uint16).tobytes())
    content[position] ^= 1
    file.write_bytes(content)
    assert ids() == expected


def test_the_fingerprint_of_a_tokenizer_is_of_what_makes_ids(sample_texts):
    tokenizers = hostile_tokenizers(sample_texts)
    fingerprints = {name: tokenizer_fingerprint(tokenizer) for name, tokenizer in tokenizers.items()}
    assert len(set(fingerprints.values())) == len(tokenizers)
    tokenizers["nfc"](["a b", "a"], padding=True)
    assert tokenizer_fingerprint(tokenizers["nfc"]) == fingerprints["nfc"]
    source = tokenizers["nfc"].backend_tokenizer
    swapped = LvnarTokenizer(
        tokenizer_object=source, target_tokenizer_object=tokenizers["nfkc"].target_backend_tokenizer
    )
    assert tokenizer_fingerprint(swapped) not in fingerprints.values()


def in_process(function, *arguments) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_a_killed_process_left_is_not_read(text, sample_tokenizer, tmp_path, monkeypatch, num_workers):
    expected = tokenize_pairs(Dataset.from_list(list(text())), sample_tokenizer, 40, 20)
    monkeypatch.setattr(training.data.encoding, "CHUNK_SIZE", 20)
    folder = tmp_path / "pairs"
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def tokenise_until_killed():
        make_chunks = training.data.encoding._text_chunks

        def stop_in_the_middle(pairs):
            for number, chunk in enumerate(make_chunks(pairs)):
                if number == 12:
                    sender.send([process.pid for process in multiprocessing.active_children()])
                    time.sleep(1000)
                yield chunk

        training.data.encoding._text_chunks = stop_in_the_middle
        tokenize_pairs(text(), sample_tokenizer, 40, 20, num_workers=num_workers, cache_folder=folder)

    process = in_process(tokenise_until_killed)
    workers = receiver.recv()
    assert len(workers) == (num_workers if num_workers > 1 else 0) and all(map(is_running, workers))
    (unfinished,) = folder.glob("*.unfinished")
    os.kill(process.pid, signal.SIGKILL)
    process.join(20)
    assert unfinished.exists() and not list(folder.glob("pairs-*/pairs.json"))
    kept, counts = tokenize_pairs(text(), sample_tokenizer, 40, 20, num_workers=num_workers, cache_folder=folder)
    assert (kept.to_dict(), counts) == (expected[0].to_dict(), expected[1])
    assert not unfinished.exists()
    deadline = time.monotonic() + 20
    while any(map(is_running, workers)):  # nobody is left to give them work
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_full_disk_leaves_nothing_to_be_read(text, sample_tokenizer, tmp_path):
    folder = tmp_path / "pairs"

    def tokenise_with_little_room(num_bytes):
        write_pairs = training.data.encoding._PairCache._write

        def write_with_little_room(*arguments):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
            write_pairs(*arguments)

        training.data.encoding._PairCache._write = write_with_little_room
        try:
            tokenize_pairs(text(), sample_tokenizer, 40, 20, cache_folder=folder)
        except OSError:
            os._exit(7)
        os._exit(0)

    size = tokenize_pairs(text(), sample_tokenizer, 40, 20)[0].data.nbytes
    for num_bytes in (size // 2, 500):
        process = in_process(tokenise_with_little_room, num_bytes)
        process.join(60)
        assert process.exitcode == 7
        assert [path.suffix for path in folder.iterdir()] == [".lock"]
    kept, counts = tokenize_pairs(text(), sample_tokenizer, 40, 20, cache_folder=folder)
    assert len(kept) == counts["kept"] > 100


def damage_size(folder: Path) -> None:
    with (folder / "pairs.arrow").open("r+b") as file:
        file.truncate(1000)


def damage_key(folder: Path) -> None:
    description = json.loads((folder / "pairs.json").read_text())
    description["key"]["cleaning"]["max_length"] += 1
    (folder / "pairs.json").write_text(json.dumps(description))


@pytest.mark.parametrize(
    "damage",
    [
        damage_size,
        damage_key,
        lambda folder: (folder / "pairs.json").write_text('{"counts": '),
        lambda folder: (folder / "pairs.json").unlink(),
        lambda folder: (folder / "pairs.arrow").unlink(),
    ],
)
def test_a_damaged_file_is_made_anew(text, sample_tokenizer, damage, tmp_path, only_read):
    expected, counts = tokenize_pairs(text(), sample_tokenizer, 40, 20, cache_folder=tmp_path / "pairs")
    expected = expected.to_dict()
    (folder,) = (path for path in (tmp_path / "pairs").iterdir() if path.is_dir())
    damage(folder)
    for _ in range(2):
        kept, same_counts = tokenize_pairs(text(), sample_tokenizer, 40, 20, cache_folder=tmp_path / "pairs")
        assert (kept.to_dict(), same_counts) == (expected, counts)
        only_read()


def test_of_several_processes_one_tokenises(text, sample_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(training.data.encoding, "CHUNK_SIZE", 30)
    folder, results = tmp_path / "pairs", multiprocessing.get_context("fork").Queue()
    encode = training.data.encoding.PairEncoder.__call__

    def tokenise(number):
        encoded = []

        def encode_slowly(self, chunk):
            encoded.append(number)
            time.sleep(0.05)
            return encode(self, chunk)

        training.data.encoding.PairEncoder.__call__ = encode_slowly
        kept, counts = tokenize_pairs(text(), sample_tokenizer, 200, 200, cache_folder=folder)
        results.put((len(encoded), kept["input_ids"][:], counts))

    processes = [in_process(tokenise, number) for number in range(3)]
    (chunks, *first), *others = sorted((results.get(timeout=60) for _ in processes), reverse=True, key=lambda r: r[0])
    for process in processes:
        process.join(20)
    assert chunks == 10 and all(other == (0, *first) for other in others)
    assert first[0] == sample_tokenizer(text()["source"])["input_ids"]


def test_a_dataset_in_memory_leaves_no_file(sample_tokenizer, tmp_path):
    rows = [{"row_id": 9, "source": "a b", "target": "b"}, {"row_id": 4, "source": "", "target": "c"}]
    kept, counts = tokenize_pairs(Dataset.from_list(rows), sample_tokenizer, 40, 20)
    assert kept["row_id"][:] == [9] and counts == counts_of(kept=1, empty=1)
    assert not list(tmp_path.iterdir())
    assert len(tokenize_pairs(Dataset.from_list(rows), sample_tokenizer, 1, 20)[0]) == 0


# rows


@pytest.fixture
def chunked_pairs(text, sample_tokenizer, monkeypatch) -> TokenizedPairs:
    """The sample, 11 pairs a record batch, most batches with fewer pairs left."""
    monkeypatch.setattr(training.data.encoding, "CHUNK_SIZE", 11)
    return tokenize_pairs(text(), sample_tokenizer, 24, 6)[0]


def as_lists(rows) -> list[dict]:
    return [{**row, "input_ids": list(row["input_ids"]), "labels": list(row["labels"])} for row in rows]


def test_rows_that_are_fetched_together_are_those_fetched_alone(chunked_pairs):
    assert 100 < len(chunked_pairs) < 290
    order = np.random.default_rng(0).permutation(len(chunked_pairs)).tolist()
    names = ["row_id", "input_ids", "labels"]
    expected = [{name: chunked_pairs[key][name] for name in names} for key in order]
    for pairs in (chunked_pairs, pickle.loads(pickle.dumps(chunked_pairs)), copy.deepcopy(chunked_pairs)):
        rows = pairs.__getitems__(order)
        assert as_lists(rows) == expected
        assert {row[name].dtype for row in rows for name in ("input_ids", "labels")} == {np.dtype(np.int64)}
    selected = chunked_pairs.select(order)  # by way of the library
    keys = list(range(0, len(order), 3))
    assert [{name: row[name] for name in names} for row in selected.__getitems__(keys)] == expected[::3]
    tensors = chunked_pairs.with_format("torch").__getitems__(order[:3])
    assert [row["labels"].tolist() for row in tensors] == [row["labels"] for row in expected[:3]]
    assert chunked_pairs.__getitems__([]) == []
    for keys in ([len(chunked_pairs)], [0, -1]):
        with pytest.raises(IndexError, match=r"rows .* of"):
            chunked_pairs.__getitems__(keys)


def test_lengths_are_had_without_a_loop(chunked_pairs):
    for pairs in (chunked_pairs, chunked_pairs.select([5, 0, 7])):
        source, target = pair_lengths(pairs)
        assert source.tolist() == [len(ids) for ids in pairs["input_ids"]]
        assert target.tolist() == [len(ids) for ids in pairs["labels"]]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_gives_the_pairs_of_the_plan(text, sample_tokenizer, sample_texts, num_workers):
    pairs, _ = tokenize_pairs(text(), sample_tokenizer, 40, 20)
    sampler = TokenBudgetBatchSampler(*pair_lengths(pairs), 256, seed=1)
    rows = []
    loader = DataLoader(pairs, batch_sampler=sampler, collate_fn=TranslationCollator(0), num_workers=num_workers)
    for batch in loader:
        assert max(batch["input_ids"].numel(), batch["labels"].numel()) <= 256
        columns = (batch[name] for name in ("row_ids", "input_ids", "attention_mask", "labels"))
        for row_id, source, mask, labels in zip(*columns, strict=True):
            rows.append(int(row_id))
            assert sample_tokenizer(sample_texts[0][row_id])["input_ids"] == source[mask == 1].tolist()
            assert sample_tokenizer(text_target=sample_texts[1][row_id])["input_ids"] == labels[labels >= 0].tolist()
    assert sorted(rows) == sorted(pairs["row_id"][:])


def test_what_the_text_costs_is_measured(write, sample_texts, sample_tokenizer, tmp_path):  # noqa: F811
    files = [write(f"x.{side}", texts) for side, texts in zip(("en", "de"), sample_texts, strict=True)]
    sample_tokenizer.save_pretrained(tmp_path / "tokenizer")
    argv = ["--train_source_files", files[0], "--train_target_files", files[1], "--max_tokens_per_batch", "300"]
    argv += ["--tokenizer_folder", str(tmp_path / "tokenizer"), "--cache_folder", str(tmp_path)]
    argv += ["--num_batches", "3", "--output_file", str(tmp_path / "times.json")]
    result = time_data.main(argv)
    assert json.loads((tmp_path / "times.json").read_text()) == result
    assert sum(result["counts"].values()) == 300 and result["batches"]["num_batches_fetched"] == 3
    assert 0 <= result["batches"]["padding_share"] < 0.2
    assert {path.name for path in tmp_path.iterdir()} == {"x.en", "x.de", "tokenizer", "times.json"}


# the digits


def test_digits_are_the_same_for_the_same_seed_and_never_repeat(tmp_path):
    pairs = make_digit_pairs(300, seed=3)
    assert pairs == make_digit_pairs(300, seed=3) != make_digit_pairs(300, seed=4)
    assert len(dict(pairs)) == 300
    tasks = {"copy": 0, "reverse": 0}
    for source, target in pairs:
        task, *digits = source.split()
        tasks[task] += 1
        assert 3 <= len(digits) <= 8 and target.split() == (digits if task == "copy" else digits[::-1])
    assert min(tasks.values()) > 100
    write_digits(tmp_path, num_train=200, num_valid=100, seed=3)
    assert check_parallel([str(tmp_path / "train.source")], [str(tmp_path / "train.target")]) == 200
    lines = [(tmp_path / f"{name}.source").read_text().splitlines() for name in ("train", "valid")]
    assert [*lines[0], *lines[1]] == [source for source, _ in pairs]
