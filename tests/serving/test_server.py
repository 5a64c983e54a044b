"""The server: LibreTranslate's requests and answers, limits, and a real process on loopback that is treated badly."""

import json
import random
import re
import signal
import socket
import threading
import time
import urllib.parse
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT, _save_repository
from libretranslatepy import LibreTranslateAPI
from starlette.testclient import TestClient
from transformers import pipeline

from lvnar_hf.jobs.line_translator import load_translator
from lvnar_hf.serving import run
from lvnar_hf.serving.api import create_app
from lvnar_hf.serving.loading import load_app
from lvnar_hf.serving.settings import Limits, ServerSettings
from lvnar_hf.serving.translations import Pairs, PairTranslator
from training import time_server
from training.speed import server as load
from training.speed.server import ServerProcess

PAIR = {"source": "en", "target": "de"}
TEXTS = [
    "Hello, {{name}}!\n\n- I was late. Tom laughed. 😀",
    "",
    " ",
    "WRITE TO tom@example.com NOW.",
    "I paid 1,234 dollars on 12/24/2023 at https://example.com/a?b=c.",
    "One. Two. Three.\tFour.",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory, sample_tokenizer) -> Path:
    """A tiny model from English to German."""
    folder = tmp_path_factory.mktemp("server") / "tiny"
    return _save_repository(
        folder, sample_tokenizer, alignment="ctc", carries_source_states=True,
        source_language="en", target_language="de",
    )  # fmt: skip


@pytest.fixture(scope="module")
def client(model):
    with TestClient(load_app(ServerSettings([str(model)], engine="torch"))) as client:
        yield client


def counted(metrics: str) -> dict[str, float]:
    """The counters in Prometheus's text."""
    return {name: float(value) for name, value in re.findall(r"^(lvnar_\S+) (\S+)$", metrics, re.M)}


def test_it_translates_as_the_pipeline_does(client, model):
    expected = [result["translation_text"] for result in pipeline("translation", model=str(model))(TEXTS)]
    assert client.post("/translate", json={"q": TEXTS, **PAIR}).json() == {"translatedText": expected}
    for text, translation in zip(TEXTS, expected, strict=True):
        assert client.post("/translate", json={"q": text, **PAIR}).json() == {"translatedText": translation}
    answer = client.post("/translate", data={"q": TEXTS[0], "source": "auto", "target": "de", "api_key": "x"})
    detected = {"confidence": 0.0, "language": "en"}
    assert answer.json() == {"translatedText": expected[0], "detectedLanguage": detected}
    assert client.post("/translate", data={"q": [TEXTS[3], TEXTS[5]], **PAIR}).json() == {
        "translatedText": [expected[3], expected[5]]
    }
    page = f"<p>{TEXTS[3]}</p><script>a < b</script>"
    asked = {"q": page, **PAIR, "format": "html", "alternatives": 3}
    assert client.post("/translate", json=asked).json()["translatedText"].endswith("</p><script>a < b</script>")
    assert client.post("/translate", json={"q": [], **PAIR}).json() == {"translatedText": []}


def test_the_other_pages(client):
    client.post("/translate", json={"q": "One.", **PAIR})
    names = [{"code": "de", "name": "German", "targets": []}, {"code": "en", "name": "English", "targets": ["de"]}]
    assert client.get("/languages").json() == names
    assert client.get("/health").json() == {"status": "ok"}
    counters = counted(client.get("/metrics").text)
    assert counters['lvnar_requests_total{outcome="ok"}'] >= 1 and counters["lvnar_waiting_requests"] == 0
    assert counters["lvnar_batch_sentences_count"] >= 1 and counters["lvnar_characters_total"] >= 4
    page = client.get("/docs").text
    parts = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert "swagger" in page.lower() and len(parts) == 3
    assert all(part.startswith("/") and client.get(part).status_code == 200 for part in parts)
    schema = client.get("/openapi.json").json()
    body = schema["paths"]["/translate"]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    assert body.rpartition("/")[2] in schema["components"]["schemas"]
    assert client.get("/translate").status_code == 405 and client.get("/none").json() == {"error": "Not Found"}


@pytest.mark.parametrize(
    ("status", "sent", "told"),
    [
        (400, {"json": {"q": "a", "source": "de", "target": "en"}}, "translates en to de"),
        (400, {"json": {"q": "a", "source": "auto", "target": "fr"}}, "translates en to de"),
        (400, {"json": {"q": 1, **PAIR}}, "q: Input should be a valid string"),
        (400, {"json": {"q": ["a", None], **PAIR}}, "q: Input should be a valid string"),
        (400, {"json": {"q": "a", **PAIR, "format": "pdf"}}, "format: Input should be 'text' or 'html'"),
        (400, {"json": [1]}, "request: Input should be"),
        (400, {"data": {"q": "a"}}, "source: Field required; target: Field required"),
        (400, {"content": b'{"q": ', "headers": {"content-type": "application/json"}}, "no JSON"),
        (400, {"content": b'{"q": "\xff"}', "headers": {"content-type": "application/json"}}, "no JSON"),
        (400, {"content": b"[" * 50_000, "headers": {"content-type": "application/json"}}, "no JSON"),
        (
            400,
            {"content": json.dumps({"q": "\ud800", **PAIR}), "headers": {"content-type": "application/json"}},
            "half a character",
        ),
        (400, {"content": b"q=%ff&source=en&target=de"}, "no form in UTF-8"),
        (400, {"content": b"q&" * 2000}, "no form"),
        (400, {"json": {"q": "ab" * 400, **PAIR}}, "tokens, and no clause"),
        (413, {"json": {"q": "a" * 20_001, **PAIR}}, "20001 characters; at most 20000"),
        (413, {"json": {"q": [""] * 30_000, **PAIR}}, "at most 20000"),
        (413, {"content": b"x" * 300_000}, "too large"),
        (415, {"files": {"q": b"a"}}, "Content-Type must be"),
    ],
)
def test_what_is_wrong_is_said(client, status, sent, told):
    answer = client.post("/translate", **sent)
    assert answer.status_code == status and list(answer.json()) == ["error"]
    assert told in answer.json()["error"]


@pytest.fixture
def limited(model):
    """A server of one request at a time and two seconds, and the event that lets its model go on."""
    pair = PairTranslator(load_translator(str(model), preserve_format=True))
    is_free, translate_ids = threading.Event(), pair.batches._translate_ids
    pair.batches._translate_ids = lambda source_ids: translate_ids(source_ids) if is_free.wait(20) else []
    with TestClient(create_app(Pairs([pair]), Limits(max_characters=50, max_waiting=1, timeout=2.0))) as client:
        yield client, is_free, pair
        is_free.set()


def test_too_many_are_told_to_come_again_and_too_slow_is_ended(limited):
    client, is_free, _ = limited
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(client.post, "/translate", json={"q": "One.", **PAIR})
        while counted(client.get("/metrics").text)["lvnar_waiting_requests"] == 0:
            assert not slow.done()
        busy = client.post("/translate", json={"q": "Two.", **PAIR})
        assert busy.status_code == 503 and busy.headers["retry-after"] == "1"
        assert "come again" in busy.json()["error"]
        assert slow.result().status_code == 504 and "not ready in time" in slow.result().json()["error"]
    is_free.set()
    assert client.post("/translate", json={"q": "One.", **PAIR}).status_code == 200
    counters = counted(client.get("/metrics").text)
    assert counters['lvnar_requests_total{outcome="busy"}'] == 1
    assert counters['lvnar_requests_total{outcome="timeout"}'] == 1


def test_a_failure_leaves_its_class_and_place_in_the_log_and_no_text(limited, caplog):
    client, is_free, pair = limited
    is_free.set()

    def fail(source_ids):
        raise RuntimeError("secret: Tom is late.")

    pair.batches._translate_ids = fail
    with caplog.at_level("INFO"):
        answer = client.post("/translate", json={"q": "Tom is late.", **PAIR})
    assert answer.status_code == 500 and answer.json() == {"error": "The server has failed at this request."}
    assert re.search(r"500 RuntimeError at .*test_server.py:\d+", caplog.text) and "Tom" not in caplog.text


def test_settings_out_of_range_and_models_that_do_not_go_together_are_refused(model, tmp_path, tiny_ctc_repository):
    for wrong in ({"max_characters": 0}, {"max_waiting": 0}, {"timeout": 0}, {"batch_window_ms": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ServerSettings(["x"], **wrong)
    with pytest.raises(ValueError, match="num_workers is 0"):
        run.serve(ServerSettings(["x"]), "127.0.0.1", 0, 0)
    with pytest.raises(ValueError, match="Two models translate from en to de"):
        load_app(ServerSettings([str(model)] * 2))
    with pytest.raises(ValueError, match="no source_language"):
        load_app(ServerSettings([str(tiny_ctc_repository)]))
    with pytest.raises(ValueError, match="no text format"):
        PairTranslator(load_translator(str(model)))


class Server(ServerProcess):
    """`lvnar serve` on loopback, and clients of it."""

    def translate(self, text: str) -> tuple[int, str]:
        status, answer = self.ask("POST", "/translate", {"q": text, **PAIR})
        return status, json.loads(answer).get("translatedText", "")

    def counters(self) -> dict[str, float]:
        return counted(self.ask("GET", "/metrics")[1].decode())

    def send(self, content: bytes, is_cut: bool) -> int:
        """What is answered to raw bytes: the status; 0 if the connection ends without an answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            try:
                connection.sendall(content)
                if is_cut:
                    return 0
                answer = connection.recv(1000)
            except ConnectionError:
                return 0
        return int(answer.split()[1]) if answer else 0


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Starts servers, which end with the test."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    servers: list[Server] = []

    def start_one(*options: str) -> Server:
        servers.append(Server(tmp_path / "log.txt", "--engine", "torch", *options))
        return servers[-1]

    yield start_one
    for server in servers:
        server.process.kill()


SECRET = "Zanzibar"


def malformed_requests(number: int) -> list[tuple[bytes, bool]]:
    """Raw requests, and whether the connection is cut after them."""
    draw = random.Random(21)
    values: list = [None, 1, -1.5, True, {}, [], [1], [[]], {"a": 1}, "", "\ud800", SECRET, [SECRET, 2], 10**400]
    valid = {"q": SECRET, **PAIR}
    requests: list[tuple[bytes, bool]] = []

    def add(body: bytes, kind: str = "application/json", length: int | None = None, cut: bool = False) -> None:
        head = f"POST /translate HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}\r\n"
        head += f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
        requests.append((head.encode() + body, cut))

    while len(requests) < number:
        kind = len(requests) % 10
        if kind < 3:  # types
            fields = {**valid, draw.choice(["q", "source", "target", "format"]): draw.choice(values)}
            if isinstance(fields["q"], str) and fields == {**valid, "q": fields["q"]} and fields["q"] != "\ud800":
                fields["target"] = draw.choice(["", "xx", SECRET])  # it would be right
            if fields["q"] == [] or draw.random() < 0.2:
                del fields["target"]
            add(json.dumps(fields).encode())
        elif kind == 3:  # encodings
            body = json.dumps(valid).encode(draw.choice(["utf-7", "utf-16-be", "latin-1"])) + b"\xff"
            add(body, draw.choice(["application/json", "application/x-www-form-urlencoded", "text/plain"]))
        elif kind == 4:  # bytes
            add(
                draw.randbytes(draw.randrange(300)), draw.choice(["application/json", "", "a/b", "multipart/form-data"])
            )
        elif kind == 5:  # sizes
            add(json.dumps({**valid, "q": SECRET * draw.randrange(3000, 9000)}).encode())
        elif kind == 6:  # a body cut short, and the connection with it
            body = json.dumps(valid).encode()
            add(body[: draw.randrange(len(body))], length=len(body), cut=True)
        elif kind == 7:  # half of JSON
            body = json.dumps(valid).encode()
            add(body[: draw.randrange(len(body) - 1)])
        elif kind == 8:  # no HTTP
            line = draw.choice([b"", b"GET", b"\x16\x03\x01\x02\x00", b"POST /translate HTTP/9.9", b"\r\n\r\n\0"])
            requests.append((line + draw.randbytes(20) + b"\r\n\r\n", draw.random() < 0.5))
        else:  # forms
            fields = [("q", SECRET), ("source", "xx"), ("target", "de"), ("format", "html")][: draw.randrange(1, 5)]
            add(urllib.parse.urlencode(fields).encode() + draw.choice([b"", b"&%", b"&q=%ff"]), "")
    return requests


def test_a_process_that_is_treated_badly_goes_on_and_ends_well(model, start):
    server = start("--model", str(model), "--timeout", "300", "--max-waiting", "64")

    # A client that nobody here wrote.
    stranger = LibreTranslateAPI(f"http://127.0.0.1:{server.port}")
    translation = stranger.translate("Tom is late.", "en", "de", timeout=60)
    assert [one["code"] for one in stranger.languages(timeout=60)] == ["de", "en"]
    assert stranger.detect("Tom is late.", timeout=60) == [{"confidence": 0.0, "language": "en"}]

    # 64 clients at once.
    texts = [f"Tom has {number} books. Mary has none." for number in range(10, 74)]
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(server.translate, texts))
    assert answers == [server.translate(text) for text in texts]
    assert {status for status, _ in answers} == {200} and translation == server.translate("Tom is late.")[1]
    counters = server.counters()
    assert counters["lvnar_batch_requests_sum"] > counters["lvnar_batch_requests_count"] + 20  # some together

    # A thousand malformed requests.
    requests = malformed_requests(1000)
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda one: server.send(*one), requests))
    for (content, is_cut), status in zip(requests, statuses, strict=True):
        is_http = content.startswith(b"POST /translate HTTP/1.1")
        assert 400 <= status < 500 or is_cut or (not is_http and status == 0), (content[:300], status)
    assert Counter(statuses)[0] < 250 and server.process.poll() is None
    assert server.translate("Tom is late.") == (200, translation)

    # The end, while requests are translated.
    with ThreadPoolExecutor(16) as pool:
        begun = [pool.submit(server.translate, f"Tom is {number}. " * 200) for number in range(16)]
        while server.counters()["lvnar_waiting_requests"] < 8:
            assert not all(one.done() for one in begun)
        num_done = sum(one.done() for one in begun)
        assert server.end() in (0, -signal.SIGTERM)
        assert num_done < 16 and {one.result()[0] for one in begun} == {200}
    with pytest.raises(OSError):
        server.ask("GET", "/health")
    kinds = (
        r"WARNING:  (Invalid HTTP request received\.|\w+Warning)|INFO:     (4\d\d [a-z_]+|Started .*|Waiting .*"
        r"|Application .*|Uvicorn running .*|Shutting down|Finished .*)"
    )
    lines = [line for line in server.log.splitlines() if line.strip()]
    assert [line for line in lines if not re.fullmatch(kinds, line)] == []
    assert len([line for line in lines if line.startswith("INFO:     Started")]) == 1 and SECRET not in server.log


def test_several_processes_share_the_port_and_count_together(model, start, tmp_path, monkeypatch):
    server = start("--model", str(model), "--num-workers", "2")
    while server.log.count("startup complete") < 2:
        assert server.process.poll() is None
        time.sleep(0.05)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(server.translate, ["Tom is late."] * 64))
    assert len(set(answers)) == 1 and answers[0][0] == 200
    for _ in range(3):
        assert server.counters()['lvnar_requests_total{outcome="ok"}'] == 64
    # The load test, with this server, and without `lvnar translate`.
    source_file, output_file = tmp_path / "source.txt", tmp_path / "server.json"
    source_file.write_text("Tom is late.\n\nMary is here.\n")
    monkeypatch.setattr(load, "ServerProcess", lambda *arguments: server)
    monkeypatch.setattr(server, "end", lambda: 0)
    monkeypatch.setattr(time_server, "_translate_file", lambda *arguments: 10.0)
    options = ["--num_clients", "4", "--seconds", "0.5", "--num_single", "5", "--output_file", str(output_file)]
    result = time_server.main(["--model", str(model), "--source_file", str(source_file), *options])
    assert json.loads(output_file.read_text()) == result
    measured = result["load"]
    assert measured["errors"] == 0 and measured["sentences"] >= 4 and measured["memory_mib"]["most"] > 100
    assert result["share_of_translate"] == measured["sentences_per_second"] / 10
    assert 0 < measured["latency_ms"]["p50"] <= measured["latency_ms"]["p95"] <= measured["latency_ms"]["p99"]
    single = result["one_client"]
    assert single["served_ms"]["p50"] > 0 and single["model_ms"]["p50"] > 0
    with pytest.raises(FileExistsError, match="--output_file"):
        time_server.main(["--model", str(model), "--source_file", str(source_file), *options])
    source_file.write_text("\n")
    with pytest.raises(ValueError, match="holds no text"):
        time_server.main(["--model", str(model), "--source_file", str(source_file)])
    assert Server.end(server) in (0, -signal.SIGTERM)
    assert "Traceback" not in server.log and server.log.count("Application shutdown complete") == 2


def test_an_answer_of_several_processes_does_not_wait_for_a_receipt(model, monkeypatch):
    opened = []

    class Processes:
        processes = ()

        def __init__(self, config, sockets):
            opened.extend(sockets)

        def run(self):
            assert opened[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    monkeypatch.setattr(run, "Multiprocess", Processes)
    for variable in ("PROMETHEUS_MULTIPROC_DIR", run.SETTINGS_VARIABLE):
        monkeypatch.setenv(variable, "")  # put back after the test
    run.serve(ServerSettings([str(model)]), "127.0.0.1", 0, 2)
    assert len(opened) == 1
    opened[0].close()


@pytest.mark.thorough
def test_processes_that_cannot_start_say_why_and_end(start, tiny_ctc_repository, tmp_path):
    with pytest.raises(RuntimeError, match="There is no folder"):
        start("--model", str(tmp_path / "none"))
    with pytest.raises(RuntimeError, match=r"(?s)no source_language.*could not start; it says why above"):
        start("--model", str(tiny_ctc_repository), "--num-workers", "2")
