"""The training text translated by a teacher: sorted by source length, in shards.

A source line is translated once, however often the text repeats it, and the first pair that has it
stands for all. Text without a translation is a pair without a target.

A run may be killed at any moment and continued by any number of processes (`lvnar_hf/jobs/shards.py`).
"""

import contextlib
import hashlib
import json
import mmap
import time
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from lvnar_hf.files.atomic import atomic_file, map_file
from lvnar_hf.files.outputs import refuse_existing
from lvnar_hf.files.text import one_line, read_lines
from lvnar_hf.jobs.shards import ShardedRun
from training.data.corpora import TextPairs
from training.data.text_encoder import hash_text
from training.distillation.backends import TeacherOutput
from training.distillation.degeneration import HANDLINGS, KINDS, is_loop

SOURCE_FILE, TARGET_FILE = "train.source.txt", "train.target.txt"
DEGENERATE_FILE, RESULT_FILE = "degenerate.jsonl", "distillation.json"
WORK_FOLDER = "unfinished"
ROWS_AT_ONCE = 10_000  # tokenised at once
REPEATED = -1  # in a plan's `kinds`


@dataclass(frozen=True)
class Plan:
    """Which rows are translated, in which order, and which are not.

    Attributes:
        order: (translated,) ids of the rows to translate, longest source first, equal ones in the corpus's order.
        lengths: (translated,) their source tokens.
        kinds: (corpus,) of each row of the corpus: 0, to be translated, or 1 + the index in `KINDS` of the reason
            why not, or `REPEATED`, the source of an earlier row, which is left out.
        positions: (corpus,) of each row in the copy of the corpus, in bytes.
    """

    order: np.ndarray
    lengths: np.ndarray
    kinds: np.ndarray
    positions: np.ndarray

    def save(self, file: Path) -> None:
        """Write it, whole or not at all."""
        with atomic_file(file) as unfinished, unfinished.open("wb") as opened:
            np.savez(opened, **vars(self))

    @classmethod
    def load(cls, file: Path) -> "Plan":
        with np.load(file) as arrays:
            return cls(**arrays)


def fingerprint_corpus(pairs: TextPairs) -> str:
    """SHA-256 of the texts and their order, as 64 hex digits."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(_corpus_line(pair))
    return digest.hexdigest()


def _corpus_line(pair: dict[str, Any]) -> bytes:
    return json.dumps([pair["source"], pair["target"]]).encode() + b"\n"


def make_plan(
    pairs: TextPairs, tokenizer: PreTrainedTokenizerBase, max_source_length: int | None, copy_file: Path
) -> Plan:
    """Copy the corpus to a file in which rows can be looked up; sort the rows by source tokens.

    Longest first, so that too little memory shows at once, and the last shards, for which processes wait, are short.

    Args:
        max_source_length: longest source that the teacher takes, in tokens with `</s>`; None: any.
    """
    lengths, kinds, positions, hashes = array("i"), array("b"), array("q"), array("Q")
    rows = iter(pairs)
    with copy_file.open("wb") as file, tqdm(desc="source lengths", unit="rows", leave=False) as bar:
        while chunk := list(islice(rows, ROWS_AT_ONCE)):
            for pair in chunk:
                positions.append(file.tell())
                hashes.append(hash_text(pair["source"]))
                file.write(_corpus_line(pair))
            sources = [pair["source"] for pair in chunk]
            for source, ids in zip(sources, tokenizer(sources, verbose=False)["input_ids"], strict=True):
                lengths.append(len(ids))
                if not source.strip():
                    kinds.append(1 + KINDS.index("empty_source"))
                elif max_source_length is not None and len(ids) > max_source_length:
                    kinds.append(1 + KINDS.index("source_too_long"))
                else:
                    kinds.append(0)
            bar.update(len(chunk))
    all_lengths, all_kinds = np.array(lengths, dtype=np.int32), np.array(kinds, dtype=np.int8)
    is_repeated = np.ones(len(hashes), dtype=bool)
    is_repeated[np.unique(np.array(hashes, dtype=np.uint64), return_index=True)[1]] = False
    all_kinds[is_repeated] = REPEATED
    order = np.argsort(-all_lengths, kind="stable")
    order = order[all_kinds[order] == 0]
    return Plan(order, all_lengths[order], all_kinds, np.array(positions, dtype=np.int64))


class Distillation(ShardedRun):
    """One run: `prepare`, then `run_tasks`, then `merge`.

    The progress bar is over source tokens, not sentences, so that the time left is right although long ones come first.

    Args:
        folder: where the result goes; the run's own files lie in its folder `unfinished` until then.
        pairs: the training text, with an empty target where there is none.
        tokenizer: the teacher's.
        max_source_length: longest source that the teacher takes, in tokens; None: any.
        settings: all that the result depends on; a run is continued with the same only. `on_degenerate` (one of
            `HANDLINGS`) and `shard_size`, in sentences, are among them.
    """

    noun, flag, unit = "distillation", "--distilled_folder", "tokens"
    of_process = (*ShardedRun.of_process, "pairs", "_plan", "_corpus")
    _plan: Plan | None = None
    _corpus: mmap.mmap | None = None

    def __init__(
        self,
        folder: str | Path,
        pairs: TextPairs,
        tokenizer: PreTrainedTokenizerBase,
        max_source_length: int | None,
        settings: dict[str, Any],
    ):
        if settings["on_degenerate"] not in HANDLINGS:
            raise ValueError(f"on_degenerate is {settings['on_degenerate']!r}; it must be one of {HANDLINGS}.")
        if settings["shard_size"] < 1:
            raise ValueError(f"shard_size is {settings['shard_size']}; it must be at least 1.")
        self.folder = Path(folder)
        super().__init__(self.folder, self.folder / WORK_FOLDER, self.folder / RESULT_FILE, settings)
        self.pairs, self.tokenizer, self.max_source_length = pairs, tokenizer, max_source_length

    # Before

    def _fingerprint(self) -> dict[str, Any]:
        return {"corpus_fingerprint": fingerprint_corpus(self.pairs)}

    def _refuse_foreign(self, overwrite: bool) -> None:
        if self.folder.exists() and any(path.name != WORK_FOLDER for path in self.folder.iterdir()):
            refuse_existing(self.folder, overwrite, self.flag)

    def _remove_result(self) -> None:
        for name in (SOURCE_FILE, TARGET_FILE, DEGENERATE_FILE):
            (self.folder / name).unlink(missing_ok=True)

    def _make_plan(self) -> dict[str, Any]:
        plan = make_plan(self.pairs, self.tokenizer, self.max_source_length, self.work / "corpus.jsonl")
        plan.save(self.work / "plan.npz")
        return {}

    # Shards

    @property
    def plan(self) -> Plan:
        """The plan that `prepare` has left in the folder."""
        if self._plan is None:
            self._plan = Plan.load(self.work / "plan.npz")
        return self._plan

    def _read_pair(self, row_id: int) -> tuple[str, str]:
        """Source and target of a row of the corpus."""
        if self._corpus is None:
            self._corpus = map_file(self.work / "corpus.jsonl")
        self._corpus.seek(int(self.plan.positions[row_id]))
        source, target = json.loads(self._corpus.readline())
        return source, target

    def _rows_of(self, shard: int) -> slice:
        """Where the shard's rows are in the plan's order."""
        return slice(shard * self.settings["shard_size"], (shard + 1) * self.settings["shard_size"])

    @property
    def shard_sizes(self) -> list[int]:
        """Source tokens of each shard."""
        starts = np.arange(0, len(self.plan.order), self.settings["shard_size"])
        return np.add.reduceat(self.plan.lengths, starts, dtype=np.int64).tolist() if len(starts) else []

    def _read_shard(self, shard: int) -> dict[int, tuple[str, str]]:
        return {row_id: self._read_pair(row_id) for row_id in self.plan.order[self._rows_of(shard)].tolist()}

    def _translate_shard(self, content: dict[int, tuple[str, str]]) -> tuple[dict[str, Any], Iterable[str]]:
        engine, sources = self.engine, [source for source, _ in content.values()]
        start, clock = time.time(), time.perf_counter()
        source_ids = self.tokenizer(sources, verbose=False)["input_ids"]
        outputs = engine.translate(source_ids, self.on_progress)
        if len(outputs) != len(source_ids):
            raise RuntimeError(f"{engine.name} gave {len(outputs)} translations of {len(source_ids)} sentences.")
        texts = self.tokenizer.batch_decode(
            [output.ids for output in outputs], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        lines = [
            {
                "row_id": row_id,
                "source_crc": zlib.crc32(source.encode()),
                "kind": self._kind_of(text, output, ids, reference),
                "translation": one_line(text),
            }
            for (row_id, (source, reference)), ids, output, text in zip(
                content.items(), source_ids, outputs, texts, strict=True
            )
        ]
        header = {
            "started": start,
            "seconds": time.perf_counter() - clock,
            "sentences": len(lines),
            "source_tokens": sum(map(len, source_ids)),
            "target_tokens": sum(len(output.ids) for output in outputs),
            "engine": engine.description,
        }
        return header, map(json.dumps, lines)

    def _kind_of(self, text: str, output: TeacherOutput, source_ids: list[int], reference: str) -> str | None:
        """Which kind of degenerate translation this is, or None."""
        if not text.strip():
            return "empty"
        if is_loop(output.ids, source_ids, ()):
            reference_ids = self.tokenizer(text_target=[reference], verbose=False)
            if is_loop(output.ids, source_ids, reference_ids.get("labels", reference_ids["input_ids"])[0]):
                return "loop"
        return "cut" if output.is_cut else None

    # After

    def merge(self, description: dict[str, Any]) -> dict[str, Any]:
        """Put the shards together in the corpus's order, check all, and write the result.

        The files appear whole, `distillation.json` last; then the run's own files go.

        Args:
            description: goes into `distillation.json`, beside what is counted here.

        Raises:
            RuntimeError: a row that is missing, doubled or of another corpus: a defect, so nothing is removed.
        """
        headers, contents, places = self._find_lines()
        degenerate: Counter[str] = Counter()
        num_without_reference = 0
        written_rows = np.zeros(len(self.plan.kinds), dtype=bool)
        names = (SOURCE_FILE, TARGET_FILE, DEGENERATE_FILE)
        with contextlib.ExitStack() as stack:
            unfinished = {name: stack.enter_context(atomic_file(self.folder / name)) for name in names}
            with contextlib.ExitStack() as files:
                sources, targets, degenerates = (
                    files.enter_context(file.open("w", encoding="utf-8", newline="\n")) for file in unfinished.values()
                )
                for row_id in range(len(self.plan.kinds)):
                    source, reference = self._read_pair(row_id)
                    num_without_reference += not reference.strip()
                    if self.plan.kinds[row_id] == REPEATED:
                        continue
                    kind, translation = self._translation_of(row_id, source, contents, places)
                    target: str | None = translation
                    if kind is not None:
                        degenerate[kind] += 1
                        # A text without a reference has none to take.
                        own = reference if reference.strip() else None
                        choices = {"reference": own, "drop": None, "keep": translation}
                        target = choices[self.settings["on_degenerate"]]
                        line = {"row_id": row_id, "kind": kind, "source": source, "translation": translation}
                        degenerates.write(json.dumps(line) + "\n")
                    if target is not None:
                        sources.write(one_line(source) + "\n")
                        targets.write(one_line(target) + "\n")
                        written_rows[row_id] = True
            num_written = int(written_rows.sum())
            self._check_outputs([unfinished[name] for name in names], written_rows)
        num_repeated = int((self.plan.kinds == REPEATED).sum())
        counts = {
            "lines": len(self.plan.kinds),
            "without_reference": num_without_reference,
            "repeated": num_repeated,
            "translated": len(self.plan.order),
            "dropped": len(self.plan.kinds) - num_repeated - num_written,
            "written": num_written,
            "degenerate": {kind: degenerate[kind] for kind in KINDS},
        }
        process_seconds = sum(header["seconds"] for header in headers)
        engines = {json.dumps(header["engine"], sort_keys=True) for header in headers}
        result = {
            **description,
            "counts": counts,
            "engines": [json.loads(engine) for engine in sorted(engines)],
            **{name: sum(header[name] for header in headers) for name in ("source_tokens", "target_tokens")},
            "process_seconds": process_seconds,
            "sentences_per_process_second": len(self.plan.order) / process_seconds if process_seconds else None,
        }
        lines = (num_written, num_written, degenerate.total())
        return self._finish(result, headers, dict(zip(names, lines, strict=True)))

    def _find_lines(self) -> tuple[list[dict[str, Any]], list[mmap.mmap], np.ndarray]:
        """The finished shards' headers and contents; and of each row of the corpus its shard and its line's position.

        Raises:
            RuntimeError: the shards do not hold each row of the plan exactly once, in its order.
        """
        headers, contents, places = [], [], np.zeros((len(self.plan.kinds), 2), dtype=np.int64)
        for shard in range(self.num_shards):
            content = map_file(self._shard_file(shard))
            contents.append(content)
            headers.append(json.loads(content.readline()))
            expected, row_ids = self.plan.order[self._rows_of(shard)].tolist(), []
            for row_id in expected:
                places[row_id] = shard, content.tell()
                row_ids.append(json.loads(content.readline() or b"{}").get("row_id"))
            if row_ids != expected or content.readline():
                raise RuntimeError(f"{self._shard_file(shard)} does not hold the rows that the plan gives it.")
        return headers, contents, places

    def _translation_of(
        self, row_id: int, source: str, contents: list[mmap.mmap], places: np.ndarray
    ) -> tuple[str | None, str]:
        """The kind of a row, None if nothing is wrong with it, and its translation, "" if there is none."""
        if self.plan.kinds[row_id]:
            return KINDS[self.plan.kinds[row_id] - 1], ""
        shard, position = places[row_id].tolist()
        contents[shard].seek(position)
        line = json.loads(contents[shard].readline())
        if line["row_id"] != row_id or line["source_crc"] != zlib.crc32(source.encode()):
            raise RuntimeError(f"Row {row_id} of the corpus has the translation of another sentence: {line}.")
        return line["kind"], line["translation"]

    def _check_outputs(self, files: list[Path], written_rows: np.ndarray) -> None:
        """Read what was written: as many lines a side, and the corpus's sources (read anew) of these rows in order.

        Args:
            written_rows: (corpus,) which rows of the corpus are in the files.
        """
        source_file, target_file, _ = files
        num_written = written_rows.sum()
        expected = (one_line(pair["source"]) for pair in self.pairs if written_rows[pair["row_id"]])
        num_sources, num_targets = 0, sum(1 for _ in read_lines(target_file))
        for written in read_lines(source_file):
            num_sources += 1
            if written != next(expected, None):
                raise RuntimeError(f"{source_file}, line {num_sources}: not the corpus's source.")
        if not num_sources == num_targets == num_written or next(expected, None) is not None:
            raise RuntimeError(f"{num_sources} source and {num_targets} target lines of {num_written} pairs.")


def settings_of(arguments: Any) -> dict[str, Any]:
    """What of section `distillation` the result depends on."""
    # Teacher and text are known by their fingerprints, `auto` by the engine it comes to; memory may call for smaller
    # batches.
    places = ("overwrite", "teacher", "teacher_revision", "student", "num_processes", "executor", "executor_options")
    changeable = ("engine", "max_batch_tokens", "only_monolingual", *places)
    return {name: value for name, value in asdict(arguments).items() if name not in changeable}
