"""Sentences of many requests, translated together by one thread.

What is unusual: what waits is sentences, not requests. The thread takes one of each request in turn, so that a short
text does not wait for a long one to end; and a request that is alone does not wait for company.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from lvnar_hf.decoding import make_batches

_MOST_WINDOWS = 10


class _Job:
    """The sentences of one call of `translate`; what is written here is written under the lock."""

    def __init__(self, source_ids: Sequence[list[int]]) -> None:
        self.source_ids = source_ids
        self.texts = [""] * len(source_ids)
        self.next_row = 0  # that is taken next
        self.num_missing = len(source_ids)
        self.error: BaseException | None = None
        self.is_done = threading.Event()


class SentenceBatches:
    """Gathers sentences while others are translated, and translates them by a thread of its own.

    Args:
        translate_ids: gives the translations of sentences alike in length, from their ids.
        max_batch_tokens: of a call of it, padding included; and so many are waited for.
        window_seconds: how long sentences wait for those of one more request, if there were others the last time; all
            together at most ten times as long.
        on_batch: is told the number of sentences, and of requests, in each round.
    """

    def __init__(
        self,
        translate_ids: Callable[[list[list[int]]], list[str]],
        max_batch_tokens: int,
        window_seconds: float,
        on_batch: Callable[[int, int], None] = lambda sentences, requests: None,
    ) -> None:
        self._translate_ids, self._max_tokens, self._window = translate_ids, max_batch_tokens, window_seconds
        self._on_batch = on_batch
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._num_waiting_tokens = 0
        self._is_closed, self._is_shared = False, False
        self._thread = threading.Thread(target=self._work, name="lvnar-batches", daemon=True)
        self._thread.start()

    def translate(self, source_ids: Sequence[list[int]], deadline: float) -> list[str]:
        """The translations in order; waits for them.

        Args:
            source_ids: of each sentence.
            deadline: by `time.monotonic()`; what is not begun by then is not translated.

        Raises:
            TimeoutError: the deadline has passed.
            RuntimeError: it is closed.
        """
        if not source_ids:
            return []
        job = _Job(source_ids)
        with self._changed:
            if self._is_closed:
                raise RuntimeError("The server is being shut down.")
            self._jobs.append(job)
            self._num_waiting_tokens += sum(map(len, source_ids))
            self._changed.notify()
        if not job.is_done.wait(max(0.0, deadline - time.monotonic())):
            with self._changed:
                self._give_up(job, TimeoutError("The translation takes longer than a request may."))
        if job.error is not None:
            raise job.error
        return job.texts

    def close(self) -> None:
        """Translate what waits, then end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while rows := self._take():
            try:
                self._translate(rows)
            except Exception:  # one of them may be the cause
                for job in dict.fromkeys(job for job, _ in rows):
                    try:
                        self._translate([(other, row) for other, row in rows if other is job])
                    except Exception as error:
                        with self._changed:
                            self._give_up(job, error)

    def _take(self) -> list[tuple[_Job, int]]:
        """The next sentences, as jobs and rows; none when it is closed and all is done."""
        with self._changed:
            while not self._jobs and not self._is_closed:
                self._changed.wait()
            # Those who have been answered ask again, one after the other: while they come, they are waited for.
            last = time.monotonic() + _MOST_WINDOWS * self._window
            while (self._is_shared or len(self._jobs) > 1) and not self._is_closed:
                left = min(self._window, last - time.monotonic())
                if left <= 0 or self._num_waiting_tokens >= self._max_tokens or not self._changed.wait(left):
                    break
            taken: list[tuple[_Job, int]] = []
            num_tokens = 0
            while self._jobs and num_tokens < self._max_tokens:
                job = self._jobs.popleft()
                taken.append((job, job.next_row))
                num_tokens += len(job.source_ids[job.next_row])
                job.next_row += 1
                if job.next_row < len(job.source_ids):
                    self._jobs.append(job)
            self._num_waiting_tokens -= num_tokens
            self._is_shared = len({id(job) for job, _ in taken}) > 1
            return taken

    def _translate(self, rows: list[tuple[_Job, int]]) -> None:
        self._on_batch(len(rows), len({id(job) for job, _ in rows}))
        rows = sorted(rows, key=lambda item: -len(item[0].source_ids[item[1]]))
        lengths = [len(job.source_ids[row]) for job, row in rows]
        for batch in make_batches(lengths, self._max_tokens):
            part = rows[batch.start : batch.stop]
            texts = self._translate_ids([job.source_ids[row] for job, row in part])
            with self._changed:
                for (job, row), text in zip(part, texts, strict=True):
                    job.texts[row] = text
                    job.num_missing -= 1
                    if job.num_missing == 0:
                        job.is_done.set()

    def _give_up(self, job: _Job, error: BaseException) -> None:
        """End a job that is not done; the lock is held."""
        if job.is_done.is_set():
            return
        job.error = error
        if job in self._jobs:
            self._jobs.remove(job)
            self._num_waiting_tokens -= sum(map(len, job.source_ids[job.next_row :]))
        job.is_done.set()
