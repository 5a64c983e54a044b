"""A graph of ONNX opened, checked, and run on arrays; imports neither torch nor transformers, which take seconds.

`onnx_graph` says what goes in and comes out.
"""

import functools
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lvnar_hf.decoding_options_lvnar import MAX_STEPS, NOT_FINITE
from lvnar_hf.engines.tried_tokens import TriedTokens
from lvnar_hf.files.fingerprints import KEY as FINGERPRINT
from lvnar_hf.files.fingerprints import StaleError
from lvnar_hf.sizes_lvnar import num_cells_of, parts_by_length

FILES = {"float32": "onnx/model.onnx", "int8": "onnx/model_int8.onnx"}  # in a model repository, by precision
# In the metadata, what a graph takes, gives and checks: raise it where that changes, since older ones are then refused.
VERSION_KEY, GRAPH_VERSION = "graph_version", "1"
# Positions, padding included, of the parts that a batch is translated in: source tokens, or the cells of alignment
# "ctc". In larger parts nothing is faster, and what passes between the operations no longer fits the processor's
# cache: the logits alone are 4 bytes for each token of the vocabulary and each position.
MAX_PART_POSITIONS = 512
# From so many positions on, each thread has parts of its own: about 12 sentences of 11 tokens in cells. Eight sentences
# are as quick in one part with all threads.
MIN_PARALLEL_POSITIONS = 256

_INPUTS = ("input_ids", "attention_mask", "num_refinement_steps", "max_length", "candidates", "min_confidence")
_OUTPUTS = ("sequences", "num_steps_taken", "num_positions")


class GraphOutput(NamedTuple):
    """What a graph gives for a batch.

    Args:
        rows: the translation of each sentence, padded, of whatever width.
        num_steps_taken: (batch,) int64.
        num_positions: (2,) int64, see `onnx_graph`.
    """

    rows: list[np.ndarray]
    num_steps_taken: np.ndarray
    num_positions: np.ndarray


def open_session(file: Path, num_threads: int) -> Any:
    """ONNX Runtime's session of a graph, on the CPU.

    Raises:
        ImportError: onnxruntime is missing.
        ValueError: the file is no graph that this version of ONNX Runtime takes.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("This engine is ONNX Runtime: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3  # errors; it would warn of weights that its own optimiser has made superfluous
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of classes that onnxruntime does not name in public
        raise ValueError(f"ONNX Runtime {onnxruntime.__version__} cannot load {file}: {error}") from error


class Graph:
    """A graph in ONNX Runtime, on the CPU.

    A small batch has all threads on each operation. A larger one is translated in parts, a thread each: threads that
    need not wait for each other do more. For those the graph is opened a second time, at the first large batch.

    Args:
        config: of the model: `LvnarConfig`, or what has its fields.
        file: the graph.
        num_threads: of one call.
        tried: the tokens of a shortlist; None: the whole vocabulary.

    Raises:
        ImportError: onnxruntime is missing.
        StaleError: the graph was made by another version of this package, with other checks.
        ValueError: the file is no graph that this version of ONNX Runtime takes, or is of something else.
    """

    def __init__(self, config: Any, file: Path, num_threads: int, tried: TriedTokens | None = None):
        self.config, self.file, self.num_threads, self.tried = config, file, num_threads, tried
        self.session = open_session(file, num_threads)
        metadata = self.session.get_modelmeta().custom_metadata_map
        if (version := metadata.get(VERSION_KEY)) != GRAPH_VERSION:
            raise StaleError(
                f"{file} is a graph of version {version}, and this package has the checks of version {GRAPH_VERSION}. "
                "Make it again: lvnar export --model FOLDER --overwrite"
            )
        self.made_from: str | None = metadata.get(FINGERPRINT)
        sides = (("inputs", self.session.get_inputs(), _INPUTS), ("outputs", self.session.get_outputs(), _OUTPUTS))
        for side, values, expected in sides:
            names = [value.name for value in values]
            if sorted(names) != sorted(expected):
                raise ValueError(
                    f"{file} has the {side} {', '.join(names)}; a graph of this version has {', '.join(expected)}. "
                    "Make it again: lvnar export --model FOLDER --overwrite"
                )

    def translate(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, num_refinement_steps: int, max_length: int | None
    ) -> GraphOutput:
        """Translate a batch, in parts of sentences alike in length.

        Args:
            input_ids, attention_mask: (batch, source_length) int64, with padding on the right.
            num_refinement_steps, max_length: see `generate`.

        Raises:
            ValueError: numbers were not finite, or the graph cannot be computed.
        """
        order, sizes = self._parts(attention_mask.sum(-1).tolist())
        ends = np.cumsum(sizes).tolist()
        parts = [order[end - size : end] for size, end in zip(sizes, ends, strict=True)]
        is_parallel = len(parts) > 1 and self.num_threads > 1
        session = self._single_threaded if is_parallel else self.session

        def run(rows: list[int]) -> tuple[np.ndarray, ...]:
            return self._run(session, input_ids[rows], attention_mask[rows], num_refinement_steps, max_length)

        outputs = list(self._threads.map(run, reversed(parts)))[::-1] if is_parallel else list(map(run, parts))
        sequences, num_steps_taken, num_positions = zip(*outputs, strict=True)
        place = np.argsort(order)
        rows_in_order = [row for part in sequences for row in part]
        return GraphOutput(
            [rows_in_order[number] for number in place],
            np.concatenate(num_steps_taken)[place],
            np.stack(num_positions).sum(0),
        )

    @functools.cached_property
    def _single_threaded(self) -> Any:
        return open_session(self.file, 1)

    @functools.cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.num_threads)

    def _parts(self, lengths: list[int]) -> tuple[list[int], list[int]]:
        """The order of the sentences and the sizes of the parts; of a large batch, as much to each thread.

        Args:
            lengths: of the sources.
        """
        order, sizes = parts_by_length(self.config, lengths, MAX_PART_POSITIONS)
        ratio = self.config.upsampling_ratio if self.config.alignment == "ctc" else 1.0
        done = np.cumsum([num_cells_of(lengths[row], ratio) for row in order])  # positions up to each sentence
        if self.num_threads == 1 or done[-1] < MIN_PARALLEL_POSITIONS:
            return order, sizes
        num_parts = self.num_threads * math.ceil(len(sizes) / self.num_threads)
        ends = np.searchsorted(done, done[-1] * np.arange(1, num_parts) / num_parts).tolist()
        sizes = np.diff([0, *ends, len(order)])
        return order, sizes[sizes > 0].tolist()

    def _run(
        self,
        session: Any,
        input_ids: np.ndarray,
        attention_mask: np.ndarray,
        num_refinement_steps: int,
        max_length: int | None,
    ) -> tuple[np.ndarray, ...]:
        """The outputs of the graph for a part of a batch, without the columns that none of its sentences needs."""
        width = int(attention_mask.any(0).nonzero()[0].max()) + 1
        input_ids, attention_mask = input_ids[:, :width], attention_mask[:, :width]
        limit = self.config.max_position_embeddings
        candidates = np.full((len(input_ids), 1), self.config.pad_token_id, dtype=np.int64)
        min_confidence = np.array(np.inf, dtype=np.float32)  # the whole vocabulary
        if self.tried is not None:
            candidates = self.tried.candidates_of(input_ids, attention_mask, self.config)
            min_confidence = self.tried.min_confidence
        inputs = {
            "input_ids": np.ascontiguousarray(input_ids),
            "attention_mask": np.ascontiguousarray(attention_mask),
            "num_refinement_steps": np.array(min(num_refinement_steps, MAX_STEPS), dtype=np.int64),
            "max_length": np.array(min(max_length or limit, limit), dtype=np.int64),
            "candidates": candidates,
            "min_confidence": min_confidence,
        }
        try:
            sequences, num_steps_taken, num_positions = session.run(list(_OUTPUTS), inputs)
        except Exception as error:  # of classes that onnxruntime does not name in public
            raise ValueError(f"ONNX Runtime cannot compute {self.file}: {error}") from error
        if len(num_positions) == 2 and int(num_positions.min()) < 0:  # as the graph says that a number was not finite
            raise ValueError(NOT_FINITE)
        is_sound = sequences.ndim == 2 and len(sequences) == len(num_steps_taken) == len(input_ids)
        if not is_sound or bool(((sequences < 0) | (sequences >= self.config.decoder_vocab_size)).any()):
            raise ValueError(f"{self.file} gives no translations of {len(input_ids)} sentences: make it again.")
        return sequences, num_steps_taken, num_positions
