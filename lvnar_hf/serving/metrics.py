"""What a server counts, for Prometheus; where PROMETHEUS_MULTIPROC_DIR names a folder, of all processes together."""

import os

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    multiprocess,
)

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """Counters of one server, or of one of its processes."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._is_shared = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        if not self._is_shared:
            ProcessCollector(registry=registry)
        self.requests = Counter(
            "lvnar_requests", "Requests to translate, by how they ended.", ["outcome"], registry=registry
        )
        self.seconds = Histogram(
            "lvnar_request_seconds", "From the first byte of a request that was answered with a translation.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.characters = Counter("lvnar_characters", "Characters of texts that were translated.", registry=registry)
        self.waiting = Gauge(
            "lvnar_waiting_requests", "Requests that are translated or wait for it.",
            multiprocess_mode="livesum", registry=registry,
        )  # fmt: skip
        self.sentences = Histogram(
            "lvnar_batch_sentences", "Sentences that were translated together.", buckets=_SIZES, registry=registry
        )
        self.sharing = Histogram(
            "lvnar_batch_requests", "Requests whose sentences were translated together.",
            buckets=_SIZES, registry=registry,
        )  # fmt: skip

    def on_batch(self, num_sentences: int, num_requests: int) -> None:
        """Count what is translated together."""
        self.sentences.observe(num_sentences)
        self.sharing.observe(num_requests)

    def render(self) -> bytes:
        """In Prometheus's text format."""
        registry = self._registry
        if self._is_shared:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)
        return generate_latest(registry)

    def close(self) -> None:
        """Take this process's waiting requests out of the sum."""
        if self._is_shared:
            multiprocess.mark_process_dead(os.getpid())
