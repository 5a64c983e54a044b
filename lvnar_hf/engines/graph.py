"""A graph of ONNX opened, checked, and run on arrays; imports neither torch nor transformers, which take seconds.

`onnx_graph` says what goes in and comes out.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lvnar_hf.decoding_options_lvnar import MAX_STEPS, NOT_FINITE
from lvnar_hf.engines.sessions import Parts, Sessions
from lvnar_hf.engines.tried_tokens import TriedTokens

FILES = {"float32": "onnx/model.onnx", "int8": "onnx/model_int8.onnx"}  # in a model repository, by precision
# From so many positions on, a batch has two parts: about 12 sentences of 11 tokens in cells. Eight are as quick
# in one part with both threads.
MIN_DIVIDED_POSITIONS = 256

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


class Graph:
    """A graph in ONNX Runtime, on the CPU.

    A small batch has all threads on each operation; a larger one is translated in parts, a thread each. For those the
    graph is opened a second time, at the first large batch.

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
        self.config, self.file, self.tried = config, file, tried
        self.sessions = Sessions(file, num_threads, _INPUTS, _OUTPUTS)
        self.made_from = self.sessions.made_from
        self.parts = Parts(config, num_threads, MIN_DIVIDED_POSITIONS)

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

        def run(rows: list[int], is_alone: bool) -> tuple[np.ndarray, ...]:
            return self._run(is_alone, input_ids[rows], attention_mask[rows], num_refinement_steps, max_length)

        parts = self.parts(attention_mask.sum(-1).tolist())
        outputs = self.parts.map(run, parts)
        sequences, num_steps_taken, num_positions = zip(*outputs, strict=True)
        place = np.argsort(np.concatenate(parts))
        rows_in_order = [row for part in sequences for row in part]
        return GraphOutput(
            [rows_in_order[number] for number in place],
            np.concatenate(num_steps_taken)[place],
            np.stack(num_positions).sum(0),
        )

    def _run(
        self,
        is_alone: bool,
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
        sequences, num_steps_taken, num_positions = self.sessions.run(inputs, is_alone)
        if len(num_positions) == 2 and int(num_positions.min()) < 0:  # as the graph says that a number was not finite
            raise ValueError(NOT_FINITE)
        is_sound = sequences.ndim == 2 and len(sequences) == len(num_steps_taken) == len(input_ids)
        if not is_sound or bool(((sequences < 0) | (sequences >= self.config.decoder_vocab_size)).any()):
            raise ValueError(f"{self.file} gives no translations of {len(input_ids)} sentences: make it again.")
        return sequences, num_steps_taken, num_positions
