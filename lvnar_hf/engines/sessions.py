"""Graphs of ONNX in ONNX Runtime, and batches in parts for its threads; imports neither torch nor transformers."""

import functools
import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lvnar_hf.files.fingerprints import KEY as FINGERPRINT
from lvnar_hf.files.fingerprints import StaleError
from lvnar_hf.sizes_lvnar import num_cells_of

# In the metadata, what a graph takes, gives and checks: raise it where that changes, since older ones are then refused.
VERSION_KEY, GRAPH_VERSION = "graph_version", "2"
# Positions, padding included, of the parts that a batch is translated in: source tokens, or the cells of alignment
# "ctc". In larger parts nothing is faster, and what passes between the operations no longer fits the processor's
# cache: the logits alone are 4 bytes for each token of the vocabulary and each position.
MAX_PART_POSITIONS = 512

_Result = TypeVar("_Result")


class Sessions:
    """ONNX Runtime's sessions of a graph, on the CPU.

    Args:
        file: the graph.
        num_threads: of `all_threads`; 0: as many as ONNX Runtime finds right.

    Attributes:
        all_threads: in which each operation has all of them.
        made_from: the fingerprint of the weights that the graph was made of, if it says so.

    Raises:
        ImportError: onnxruntime is missing.
        StaleError: the graph was made by another version of this package, with other checks.
        ValueError: the file is no graph that this version of ONNX Runtime takes, or is of something else.
    """

    def __init__(self, file: Path, num_threads: int, inputs: Iterable[str], outputs: Iterable[str]):
        self.file, self.num_threads = file, num_threads
        self.all_threads = self._open(num_threads)
        metadata = self.all_threads.get_modelmeta().custom_metadata_map
        if (version := metadata.get(VERSION_KEY)) != GRAPH_VERSION:
            raise StaleError(
                f"{file} is a graph of version {version}, and this package has the checks of version {GRAPH_VERSION}. "
                "Make it again: lvnar export --model FOLDER --overwrite"
            )
        self.made_from: str | None = metadata.get(FINGERPRINT)
        given = (self.all_threads.get_inputs(), self.all_threads.get_outputs())
        for side, values, expected in zip(("inputs", "outputs"), given, (inputs, outputs), strict=True):
            names = [value.name for value in values]
            if sorted(names) != sorted(expected):
                raise ValueError(
                    f"{file} has the {side} {', '.join(names)}; a graph of this version has {', '.join(expected)}. "
                    "Make it again: lvnar export --model FOLDER --overwrite"
                )
        self.outputs = list(outputs)

    @functools.cached_property
    def one_thread(self) -> Any:
        """For calls that go on side by side: threads that need not wait for each other do more."""
        return self.all_threads if self.num_threads == 1 else self._open(1)

    def _open(self, num_threads: int) -> Any:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError("This engine is ONNX Runtime: pip install onnxruntime") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        # Else threads that wait for the next operation are in the way of other graphs after the call, for a while.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3  # errors; it would warn of weights that its own optimiser has made superfluous
        try:
            return onnxruntime.InferenceSession(
                str(self.file),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["SkipLayerNormFusion"],  # its sum and norm in one is slower than the two
            )
        except Exception as error:  # of classes that onnxruntime does not name in public
            raise ValueError(f"ONNX Runtime {onnxruntime.__version__} cannot load {self.file}: {error}") from error

    def run(self, inputs: dict[str, np.ndarray], is_alone: bool = True) -> list[np.ndarray]:
        """The outputs.

        Args:
            is_alone: no other call goes on beside this one, so that all threads may be taken.

        Raises:
            ValueError: the graph cannot be computed.
        """
        session = self.all_threads if is_alone else self.one_thread
        try:
            return list(session.run(self.outputs, inputs))
        except Exception as error:  # of classes that onnxruntime does not name in public
            raise ValueError(f"ONNX Runtime cannot compute {self.file}: {error}") from error


class Parts:
    """Batches in parts of sentences alike in length, the same on any machine: in int8 tokens depend on them.

    Where there are as many parts as threads, each thread has parts of its own; else one part is done after another, by
    all threads.

    Args:
        config: of the model.
        num_threads: that there are.
        min_positions: from which on a batch has more than one part.
    """

    def __init__(self, config: Any, num_threads: int, min_positions: int):
        self.config, self.num_threads, self.min_positions = config, num_threads, min_positions

    def __call__(self, lengths: list[int]) -> list[list[int]]:
        """The sentences of each part, shortest first, about as many positions in each.

        Args:
            lengths: of the sources.
        """
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        ratio = self.config.upsampling_ratio if self.config.alignment == "ctc" else 1.0
        done = np.cumsum([num_cells_of(lengths[row], ratio) for row in order])  # positions up to each sentence
        if done[-1] < self.min_positions:
            return [order]
        num_parts = math.ceil(done[-1] / MAX_PART_POSITIONS)
        num_parts = 2 if num_parts <= 2 else 4 * math.ceil(num_parts / 4)  # for two threads, and for four
        ends = [*np.searchsorted(done, done[-1] * np.arange(1, num_parts) / num_parts).tolist(), len(order)]
        return [order[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True) if end > start]

    def map(self, work: Callable[[list[int], bool], _Result], parts: list[list[int]]) -> list[_Result]:
        """What `work` makes of each part, in their order; it is told whether it is alone."""
        if len(parts) < self.num_threads or self.num_threads == 1:
            return [work(part, True) for part in parts]
        longest_first = self._threads.map(lambda part: work(part, False), reversed(parts))
        return list(longest_first)[::-1]

    @functools.cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.num_threads)
