"""A server process under load: many clients for a time, one client, memory.

What is unusual: the clients run in this process, on the same cores as the server, as lean as they can be: a connection
each, kept open, and no library between them and the bytes.
"""

import asyncio
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from lvnar_hf.jobs.line_translator import LineTranslator

START_SECONDS = 300  # at most, until it answers


class ServerProcess:
    """`lvnar serve` on a free port of loopback; its log goes to a file.

    Args:
        log_file: standard output and error.
        options: of the command.

    Raises:
        RuntimeError: it ends instead of answering; with its log.
    """

    def __init__(self, log_file: Path, *options: str) -> None:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        command = [sys.executable, "-m", "lvnar_hf", "serve", "--port", str(self.port), *options]
        self._log_file = log_file
        with log_file.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        end = time.monotonic() + START_SECONDS
        while not self._is_up():
            if self.process.poll() is not None or time.monotonic() > end:
                self.process.kill()
                raise RuntimeError(f"The server does not answer. Its log:\n{self.log}")
            time.sleep(0.1)

    @property
    def log(self) -> str:
        """What it has written."""
        return self._log_file.read_text("utf-8")

    def _is_up(self) -> bool:
        try:
            return self.ask("GET", "/health")[0] == 200
        except OSError:
            return False

    def ask(self, method: str, path: str, content: Any = None) -> tuple[int, bytes]:
        """Status and body of the answer to a request, of JSON if there is content."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            body = None if content is None else json.dumps(content).encode()
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def memory_mib(self) -> float:
        """Resident memory of the server and the processes it has started."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self._pids())
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def cpu_seconds(self) -> float:
        """Of the processor, that the server and the processes it has started have used."""
        fields = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self._pids())
        return sum(int(of_one[11]) + int(of_one[12]) for of_one in fields) / os.sysconf("SC_CLK_TCK")

    def _pids(self) -> list[int]:
        pids = [self.process.pid]
        for pid in pids:
            pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return pids

    def end(self) -> int:
        """Ask it to end, and wait until what is begun is done; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


def measure_load(
    server: ServerProcess, texts: Sequence[str], pair: dict[str, str], num_clients: int, seconds: float
) -> dict[str, Any]:
    """Clients that each send a text as soon as they have the last one's translation."""
    return asyncio.run(_measure_load(server, texts, pair, num_clients, seconds))


async def _measure_load(
    server: ServerProcess, texts: Sequence[str], pair: dict[str, str], num_clients: int, seconds: float
) -> dict[str, Any]:
    bodies = itertools.cycle([json.dumps({"q": text, **pair}).encode() for text in texts])
    times: list[float] = []
    statuses: Counter[int] = Counter()
    memory: list[float] = []
    start, cpu_start = time.monotonic(), server.cpu_seconds()

    async def watch_memory() -> None:
        while True:
            memory.append(server.memory_mib())
            await asyncio.sleep(1)

    watcher = asyncio.create_task(watch_memory())
    await asyncio.gather(*(_send(server.port, bodies, start + seconds, times, statuses) for _ in range(num_clients)))
    lasted = time.monotonic() - start
    watcher.cancel()
    quarter = memory[len(memory) // 4 :] or memory
    return {
        "num_clients": num_clients,
        "seconds": lasted,
        "sentences": len(times),
        "sentences_per_second": len(times) / lasted,
        "cpu_ms_a_sentence": 1000 * (server.cpu_seconds() - cpu_start) / max(1, len(times)),
        "latency_ms": _percentiles(times),
        "errors": sum(number for status, number in statuses.items() if status != 200),
        "memory_mib": {"after_a_quarter": quarter[0], "at_the_end": quarter[-1], "most": max(memory)},
    }


async def _send(port: int, bodies: Iterator[bytes], end: float, times: list[float], statuses: Counter[int]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /translate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    while (begin := time.monotonic()) < end:
        body = next(bodies)
        writer.write(f"{head}{len(body)}\r\n\r\n".encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        status = int(answer.split(None, 2)[1])
        length = answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
        statuses[status] += 1
        if status == 200:
            times.append(time.monotonic() - begin)
    writer.close()


def measure_overhead(
    server: ServerProcess, translator: LineTranslator, texts: Sequence[str], pair: dict[str, str]
) -> dict[str, Any]:
    """One client beside the model in this process: text by text in turns, milliseconds."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    served: list[float] = []
    own: list[float] = []
    for text in texts:
        start = time.perf_counter()
        body = json.dumps({"q": text, **pair}).encode()
        connection.request("POST", "/translate", body, {"Content-Type": "application/json"})
        connection.getresponse().read()
        middle = time.perf_counter()
        translator.translate([text])
        served.append(middle - start)
        own.append(time.perf_counter() - middle)
    connection.close()
    differences = [1000 * (one - other) for one, other in zip(served, own, strict=True)]
    return {
        "sentences": len(texts),
        "served_ms": _percentiles(served),
        "model_ms": _percentiles(own),
        "overhead_ms": statistics.median(differences),
    }


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds."""
    ordered = sorted(seconds)
    places = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    return {name: 1000 * ordered[min(len(ordered) - 1, int(part * len(ordered)))] for name, part in places.items()}
