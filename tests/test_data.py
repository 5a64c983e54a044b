"""From files to batches: nothing is lost, misaligned or repeated, and what is left out is counted."""

import gzip
import os

import numpy as np
import pytest
import torch
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

from tests.digits import make_digit_pairs, write_digits
from training.batching import TokenBudgetBatchSampler, TranslationCollator, plan_batches
from training.data import load_text_pairs, tokenize_pairs
from training.text import check_parallel


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What `datasets` caches goes to the folder of the test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def write(tmp_path):
    """Write a file of lines; return its path as text."""

    def write(name: str, lines: list[str]) -> str:
        data = "".join(line + "\n" for line in lines).encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return str(tmp_path / name)

    return write


# reading


def test_files_of_a_side_are_read_one_after_another(write):
    source = [write("a.en", ["one", "two"]), write("b.en.gz", ["three"])]
    target = [write("all.de", ["eins", "zwei", "drei"])]
    assert check_parallel(source, target) == 3
    pairs = load_text_pairs(source, target)
    assert pairs.column_names == ["row_id", "source", "target"]
    assert pairs["row_id"][:] == [0, 1, 2]
    assert pairs["source"][:] == ["one", "two", "three"] and pairs["target"][:] == ["eins", "zwei", "drei"]


def test_different_numbers_of_lines_name_both_counts_and_files(write):
    source, target = write("x.en", ["a"] * 3), write("x.de", ["a"] * 2)
    with pytest.raises(ValueError, match=r"different numbers of lines: 3 in \[.*x\.en'\], 2 in \[.*x\.de'\]"):
        load_text_pairs([source], [target])


def test_the_file_and_line_that_is_not_utf8_are_named(write, tmp_path):
    (tmp_path / "bad.de").write_bytes("gut\nschön\n".encode() + "schön\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"bad\.de, line 3: not valid UTF-8"):
        load_text_pairs([write("x.en", ["a"] * 3)], [str(tmp_path / "bad.de")])


def test_a_missing_file_is_named(write):
    with pytest.raises(FileNotFoundError, match=r"no text file /nowhere/x\.de"):
        load_text_pairs([write("x.en", ["a"])], ["/nowhere/x.de"])


def test_no_files_are_refused(write):
    with pytest.raises(ValueError, match=r"Both sides need text files; given source \['.*'\], target \[\]"):
        load_text_pairs([write("x.en", ["a"])], [])


def test_empty_files_are_refused(write):
    with pytest.raises(ValueError, match=r"not a line in \['.*x\.en'\] and \['.*x\.de'\]"):
        load_text_pairs([write("x.en", [])], [write("x.de", [])])


def test_line_separators_of_unicode_do_not_end_a_line(write):
    odd = ["a\u2028b", "c\u0085d", "e\x0cf\x1cg", "h\ri", "last"]
    pairs = load_text_pairs([write("x.en", odd)], [write("x.de", ["1", "2", "3", "4", "5"])])
    assert pairs["source"][:] == odd
    assert pairs["target"][4] == "5"


def test_an_edited_file_is_read_again(write):
    target = [write("x.de", ["1", "2"])]
    assert load_text_pairs([write("x.en", ["a", "b"])], target)["source"][:] == ["a", "b"]
    assert load_text_pairs([write("x.en", ["a", "bb"])], target)["source"][:] == ["a", "bb"]  # another size
    source = write("x.en", ["a", "cc"])  # the same size, another time
    os.utime(source, ns=(1, 1))
    assert load_text_pairs([source], target)["source"][:] == ["a", "cc"]


def test_an_unchanged_file_is_tokenised_once(write, sample_tokenizer, monkeypatch):
    files = [write("x.en", ["The cat."])], [write("x.de", ["Die Katze."])]
    first, counts = tokenize_pairs(load_text_pairs(*files), sample_tokenizer, 40, 20)
    monkeypatch.setattr(type(sample_tokenizer), "__call__", None)
    second, same_counts = tokenize_pairs(load_text_pairs(*files), sample_tokenizer, 40, 20)
    assert first.to_dict() == second.to_dict() and counts == same_counts


# cleaning


def test_pairs_that_are_left_out_are_counted_by_reason(write, sample_tokenizer):
    long = " ".join("abcdefghijk")
    num_long = len(sample_tokenizer(long)["input_ids"])
    source = ["Tom", "", "Tom", " \t", long, long, "Tom", "Tom ist da"]
    target = ["Tom", "Tom", "\u3000", "", long, "Tom", long + " l m", "Tom is here"]
    pairs = load_text_pairs([write("x.en", source)], [write("x.de", target)])
    kept, counts = tokenize_pairs(pairs, sample_tokenizer, max_length=num_long, max_length_offset=num_long - 3)
    assert counts == {"kept": 3, "empty": 3, "too_long": 1, "length_difference": 1}
    assert sum(counts.values()) == len(source)
    assert kept["row_id"][:] == [0, 4, 7]
    assert set(kept.column_names) == {"row_id", "input_ids", "labels", "source_length", "target_length"}
    for row in kept:
        assert row["input_ids"] == sample_tokenizer(source[row["row_id"]])["input_ids"]
        assert row["labels"] == sample_tokenizer(text_target=target[row["row_id"]])["input_ids"]
        assert (row["source_length"], row["target_length"]) == (len(row["input_ids"]), len(row["labels"]))
        assert row["input_ids"][-1] == row["labels"][-1] == sample_tokenizer.eos_token_id


def test_the_limits_are_inclusive(write, sample_tokenizer):
    pairs = load_text_pairs([write("x.en", ["a b c d"])], [write("x.de", ["a"])])
    longest = len(sample_tokenizer("a b c d")["input_ids"])
    difference = longest - len(sample_tokenizer("a")["input_ids"])
    for max_length, max_offset, reason in (
        (longest, difference, "kept"),
        (longest - 1, difference, "too_long"),
        (longest, difference - 1, "length_difference"),
    ):
        assert tokenize_pairs(pairs, sample_tokenizer, max_length, max_offset)[1][reason] == 1


# batches


def realistic_lengths(num_pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-normal source lengths up to 60, median 9, as in Tatoeba; targets a fifth longer or shorter by chance."""
    generator = np.random.default_rng(0)
    source = generator.lognormal(2.2, 0.45, num_pairs)
    target = source * generator.lognormal(0.0, 0.18, num_pairs) + generator.normal(0.0, 1.0, num_pairs)
    return tuple(np.clip(np.rint(lengths), 2, 60).astype(int) for lengths in (source, target))


@pytest.mark.parametrize("max_tokens", [60, 1536])
def test_every_pair_is_in_one_batch_within_the_budget(max_tokens):
    source, target = realistic_lengths(3000)
    plan = plan_batches(source, target, max_tokens, seed=1, epoch=0)
    assert sorted(index for batch in plan for index in batch) == list(range(3000))
    for batch in plan:
        assert len(batch) * max(source[batch].max(), target[batch].max()) <= max_tokens


def test_the_plan_depends_on_seed_and_epoch_alone():
    lengths = realistic_lengths(3000)
    plan = plan_batches(*lengths, 1536, seed=1, epoch=2)
    set_seed(5)
    np.random.random(3)
    assert plan_batches(*lengths, 1536, seed=1, epoch=2) == plan
    for seed, epoch in ((1, 3), (2, 2), (2, 1)):
        other = plan_batches(*lengths, 1536, seed=seed, epoch=epoch)
        assert other != plan
        assert {frozenset(batch) for batch in other} != {frozenset(batch) for batch in plan}  # not only their order


def test_little_is_padding():
    source, target = realistic_lengths(20_000)
    plan = plan_batches(source, target, 1536, seed=1, epoch=0)
    padded = sum(len(batch) * (source[batch].max() + target[batch].max()) for batch in plan)
    assert 1 - (source.sum() + target.sum()) / padded < 0.08
    full = [len(batch) * max(source[batch].max(), target[batch].max()) for batch in plan]
    assert np.mean(full) > 0.9 * 1536


def test_a_pair_over_the_budget_is_refused():
    with pytest.raises(ValueError, match="has 11 tokens on a side; max_tokens_per_batch is 10"):
        plan_batches([3, 4], [3, 11], max_tokens=10, seed=1, epoch=0)
    assert plan_batches([3, 4], [3, 11], max_tokens=11, seed=1, epoch=0)


@pytest.mark.parametrize("num_processes", [2, 5])
def test_processes_share_the_plan_without_overlap(num_processes):
    lengths = realistic_lengths(3000)
    samplers = [TokenBudgetBatchSampler(*lengths, 1536, 1, rank, num_processes) for rank in range(num_processes)]
    num_left_out = set()
    for epoch in range(3):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        plan = plan_batches(*lengths, 1536, seed=1, epoch=epoch)
        slices = [list(sampler) for sampler in samplers]
        assert [len(part) for part in slices] == [len(plan) // num_processes] * num_processes
        assert [len(sampler) for sampler in samplers] == [len(part) for part in slices]
        num_left_out.add(len(plan) % num_processes)
        indices = [index for part in slices for batch in part for index in batch]
        assert sorted(indices) == sorted(i for batch in plan[: len(plan) - len(plan) % num_processes] for i in batch)
        assert list(samplers[0]) == slices[0]  # iterating does not advance the epoch
    assert num_processes == 2 or num_left_out != {0}


def test_fewer_batches_than_processes_are_refused():
    with pytest.raises(ValueError, match="2 pairs give 1 batches for 2 processes; lower max_tokens_per_batch"):
        TokenBudgetBatchSampler([3, 3], [3, 3], 100, seed=1, rank=0, world_size=2)


def test_collator_pads_each_side_with_its_own_value():
    rows = [
        {"row_id": 7, "input_ids": [5, 6, 1], "labels": [8, 1]},
        {"row_id": 3, "input_ids": [0, 1], "labels": [9, 9, 9, 1]},  # an id like padding, inside a sentence
    ]
    batch = TranslationCollator(pad_token_id=0)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 1], [0, 1, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[8, 1, -100, -100], [9, 9, 9, 1]]
    assert batch["row_ids"].tolist() == [7, 3]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_a_loader_gives_the_pairs_of_the_plan(write, sample_tokenizer, sample_texts):
    files = [write(f"x.{side}", texts) for side, texts in zip(("en", "de"), sample_texts, strict=True)]
    pairs, _ = tokenize_pairs(load_text_pairs(files[:1], files[1:]), sample_tokenizer, 40, 20)
    sampler = TokenBudgetBatchSampler(pairs["source_length"][:], pairs["target_length"][:], 256, seed=1)
    rows = []
    for batch in DataLoader(pairs, batch_sampler=sampler, collate_fn=TranslationCollator(0)):
        assert max(batch["input_ids"].numel(), batch["labels"].numel()) <= 256
        columns = (batch[name] for name in ("row_ids", "input_ids", "attention_mask", "labels"))
        for row_id, source, mask, labels in zip(*columns, strict=True):
            rows.append(int(row_id))
            assert sample_tokenizer(sample_texts[0][row_id])["input_ids"] == source[mask == 1].tolist()
            assert sample_tokenizer(text_target=sample_texts[1][row_id])["input_ids"] == labels[labels >= 0].tolist()
    assert sorted(rows) == sorted(pairs["row_id"][:])


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
