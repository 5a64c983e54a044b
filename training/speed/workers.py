"""Each system in a process of its own, which times it there and says how much memory it took.

Systems with one model that takes long to compile share a process (`SystemSpec.process`).

The processes live side by side and are given work one after another; the others wait without a
thread that runs. So repeats are interleaved, no engine disturbs another's threads, as CTranslate2 and torch do in one
process, and the memory of the process is the system's own. What is timed is timed inside: the pipe is not in it.
"""

import contextlib
import multiprocessing
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers.utils import logging

from lvnar_hf.loading import load_tokenizer
from training.speed.specs import SystemSpec
from training.speed.systems import System, build_system

CLEAR_REFS = Path("/proc/self/clear_refs")  # Linux: writing 5 makes the peak memory what is resident now


@dataclass(frozen=True)
class Workload:
    """Work for one system: what it translates, batch by batch.

    Attributes:
        batches: of token ids with `</s>`, or of texts.
        kind: "model": from ids to ids is timed, or "end_to_end": from texts to texts, tokenizer included.
        warm_up: a batch that is translated before, without being timed; None: none is.
    """

    batches: list[list[Any]]
    kind: str = "model"
    warm_up: list[Any] | None = None


@dataclass
class Measurement:
    """What came of it.

    Attributes:
        seconds: of each batch.
        outputs: for each batch its translations: ids where it was given ids, else texts.
        num_refinements: refinement steps, summed over the sentences of `batches`.
        peak_memory_mib: on the CPU, of the process meanwhile, libraries and weights included; on a GPU, of torch's
            tensors; None where it is not known.
        description: the system's own.
    """

    seconds: list[float]
    outputs: list[list[Any]]
    num_refinements: int
    peak_memory_mib: float | None
    description: dict[str, Any] = field(default_factory=dict)


class Runner(Protocol):
    """Does the work of one system."""

    spec: SystemSpec

    def run(self, workload: Workload) -> Measurement: ...


def time_calls(
    call: Callable[[Any], Any], batches: Sequence[Any], synchronize: Callable[[], None]
) -> tuple[list[float], list[Any]]:
    """Call with each batch: seconds of each call, and what it returned.

    `synchronize` is called before each timestamp.
    """
    seconds, outputs = [], []
    for batch in batches:
        synchronize()
        start = time.perf_counter()
        output = call(batch)
        synchronize()
        seconds.append(time.perf_counter() - start)
        outputs.append(output)
    return seconds, outputs


class LocalRunner:
    """A system in this process."""

    def __init__(self, spec: SystemSpec):
        torch.set_num_threads(spec.num_threads)
        self.spec, self.device = spec, torch.device(spec.device)
        self.system: System = build_system(spec)
        torch.set_num_threads(spec.num_threads)  # a translator of CTranslate2 sets its own for torch too
        self.tokenizer = None if spec.tokenizer_folder is None else load_tokenizer(spec.tokenizer_folder)

    def run(self, workload: Workload) -> Measurement:
        """Prepare, warm up, translate."""
        is_text = isinstance(workload.batches[0][0], str)
        batches = [self._encode(texts) for texts in workload.batches] if is_text else workload.batches
        self.system.prepare(batches)
        if workload.warm_up is not None:
            self._translate_texts(workload.warm_up) if is_text else self.system.translate(workload.warm_up)
        self._reset_peak_memory()
        before = self.system.num_refinements
        if workload.kind == "end_to_end":
            seconds, outputs = time_calls(self._translate_texts, workload.batches, self._synchronize)
        else:
            seconds, outputs = time_calls(self.system.translate, batches, self._synchronize)
            outputs = [self._decode(ids) for ids in outputs] if is_text else outputs
        num_refinements = self.system.num_refinements - before
        return Measurement(seconds, outputs, num_refinements, self._peak_memory_mib(), self.system.description)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        assert self.tokenizer is not None
        return self.tokenizer(texts, truncation=True, max_length=self.tokenizer.model_max_length)["input_ids"]

    def _decode(self, batch: list[list[int]]) -> list[str]:
        assert self.tokenizer is not None
        return self.tokenizer.batch_decode(batch, skip_special_tokens=True)

    def _translate_texts(self, texts: list[str]) -> list[str]:
        return self._decode(self.system.translate(self._encode(texts)))

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _reset_peak_memory(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif CLEAR_REFS.exists():
            CLEAR_REFS.write_text("5")

    def _peak_memory_mib(self) -> float | None:
        if self.device.type != "cuda":
            return peak_memory_mib()
        is_torch = not self.spec.engine.startswith("ctranslate2")  # whose memory torch does not see
        return torch.cuda.max_memory_allocated(self.device) / 2**20 if is_torch else None


def peak_memory_mib() -> float | None:
    """The largest resident memory of this process since it was reset, in MiB; None where there is no /proc."""
    status = Path("/proc/self/status")
    return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024 if status.exists() else None


def _serve(connection: Connection, specs: Sequence[SystemSpec]) -> None:
    """A process's life: build its systems, then measure each workload, until the other end is closed."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        library_memory_mib = peak_memory_mib()
        runners = {spec.name: LocalRunner(spec) for spec in specs}
        connection.send((library_memory_mib, peak_memory_mib()))
        while True:
            name, workload = connection.recv()
            connection.send(runners[name].run(workload))
    except EOFError:  # the benchmark has gone
        return
    except Exception:
        connection.send(traceback.format_exc())


class WorkerProcess:
    """A process with systems in it, which begins to load at once.

    Attributes:
        library_memory_mib: resident before the model is loaded: Python and the libraries.
        loaded_memory_mib: the largest until it is loaded.
    """

    library_memory_mib: float | None
    loaded_memory_mib: float | None

    def __init__(self, specs: Sequence[SystemSpec]):
        self.specs = specs
        context = multiprocessing.get_context("forkserver")  # one process imports the libraries, for all of them
        context.set_forkserver_preload(["torch", "transformers", "training.speed.workers"])
        self._connection, remote = context.Pipe()
        self._process = context.Process(target=_serve, args=(remote, specs), daemon=True)
        self._process.start()
        remote.close()

    def wait(self) -> None:
        """Return when the systems are built.

        Raises:
            RuntimeError: what went wrong in the process.
        """
        self.library_memory_mib, self.loaded_memory_mib = self._receive(self.specs[0].name)

    def run(self, name: str, workload: Workload) -> Measurement:
        """Have a system do its work, and wait for it.

        Raises:
            RuntimeError: what went wrong in the process.
        """
        with contextlib.suppress(BrokenPipeError):  # `_receive` says why
            self._connection.send((name, workload))
        return self._receive(name)

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(timeout=10)
        self._process.kill()
        self._process.join()

    def _receive(self, name: str) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            answer = f"its process ended with code {self._process.exitcode} (-9: perhaps killed for memory)"
        if isinstance(answer, str):
            raise RuntimeError(f"{name}: {answer}")
        return answer


@dataclass
class Worker:
    """A system in a process."""

    spec: SystemSpec
    process: WorkerProcess

    def run(self, workload: Workload) -> Measurement:
        return self.process.run(self.spec.name, workload)
