"""A Hub on 127.0.0.1, in memory, that the real huggingface_hub client publishes to and downloads from, LFS included.

What is unusual: faults are injected by request, so that a test can break any step of an upload or a download. A commit
is stored whole (path to bytes), and its id is the hash of what it holds and of its parent.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants, file_download

TOKEN = "hf_loopback_secret"


@dataclass
class Fault:
    """What goes wrong with the requests that match.

    Args:
        method, path: regular expressions, of the whole method and of a part of the path.
        status: answer with this status instead.
        truncate: "connection": half of the answer's content, then the connection ends; "content": half of it, as if
            that were all.
        action: called with the hub before the request is answered.
        after: how many requests that match are answered well first.
        times: how many fail; None: all.
    """

    method: str
    path: str
    status: int | None = None
    truncate: str | None = None
    action: Callable[["LoopbackHub"], Any] | None = None
    after: int = 0
    times: int | None = 1


@dataclass
class Repository:
    """Commits by id, newest last; branches and tags name them."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        content = repr((self.branches.get(branch), sorted((n, hashlib.sha256(c).digest()) for n, c in files.items())))
        oid = hashlib.sha1(content.encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        named = self.branches.get(revision) or self.tags.get(revision)
        return named or (revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[str(self.resolve(revision))]


class LoopbackHub:
    """The server; `url` is its endpoint, `requests` the (method, path) that it got."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}  # by SHA-256
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.may_write = True
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def fault_of(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if re.fullmatch(fault.method, method) and re.search(fault.path, path):
                if fault.after > 0:
                    fault.after -= 1
                elif fault.times is None or fault.times > 0:
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None


@contextmanager
def running_hub() -> Iterator[LoopbackHub]:
    hub = LoopbackHub()
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()


def point_client_at(loopback: LoopbackHub, patch: pytest.MonkeyPatch) -> None:
    """Let this process's client send its token and speak to this Hub; older ones read the constants, beside `HfApi`."""
    patch.setenv("HF_TOKEN", TOKEN)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "ENDPOINT", loopback.url)
    template = loopback.url + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):
        patch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


def is_large(path: str, size: int) -> bool:
    """What the Hub's .gitattributes send to LFS."""
    return path.endswith((".safetensors", ".onnx", ".png")) or size > 10_000_000


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag_of(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if is_large(path, len(content)) else git_hash(content)


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    routes: list[tuple[str, str, str]] = [
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", r"/api/(?:models|spaces)/(.+?)/preupload/(.+)", "preupload"),
        ("POST", r"/api/(?:models|spaces)/(.+?)/commit/(.+)", "commit"),
        ("POST", r"/api/models/(.+?)/branch/(.+)", "branch"),
        ("POST", r"/api/models/(.+?)/tag/(.+)", "tag"),
        ("GET", r"/api/models/(.+?)/tree/([^/]+)(?:/.*)?", "tree"),
        ("GET", r"/api/models/(.+?)/revision/(.+)", "info"),
        ("GET", r"/api/models/(.+?)", "info"),
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/(.+?)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(\w+)", "lfs_put"),
        ("POST", r"/lfs/(\w+)/verify", "lfs_verify"),
        ("GET|HEAD", r"/(.+?)/resolve/([^/]+)/(.+)", "resolve"),
    ]

    def log_message(self, *args: Any) -> None:
        pass

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self._read_chunks()
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
            self.fault = self.hub.fault_of(self.command, path)
            if self.fault is not None and self.fault.action is not None:
                self.fault.action(self.hub)
            if self.fault is not None and self.fault.status is not None:
                self.refuse(self.fault.status, "injected")
                return
            for method, pattern, name in self.routes:
                match = re.fullmatch(pattern, path)
                if match and re.fullmatch(method, self.command):
                    if self.command in ("POST", "PUT") and not name.startswith(("lfs", "validate")):
                        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                            self.refuse(401, "no token")
                            return
                        if not self.hub.may_write:
                            self.refuse(403, "this token may not write")
                            return
                    getattr(self, name)(*match.groups())
                    return
        self.refuse(404, f"no such endpoint: {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def _read_chunks(self) -> bytes:
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        sent = content
        truncate = self.fault.truncate if self.fault is not None else None
        if truncate is not None and self.command == "GET":
            sent = content[: len(content) // 2]
        self.send_response(status)
        self.send_header("Content-Length", str(len(sent if truncate == "content" else content)))
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)
        if truncate == "connection":
            self.close_connection = True

    def refuse(self, status: int, message: str, code: str | None = None) -> None:
        headers = {"X-Error-Message": message, **({} if code is None else {"X-Error-Code": code})}
        self.fault = None
        self.answer({"error": message}, status, headers)

    def find(self, repo_id: str, revision: str | None = "main") -> tuple[Repository, str] | None:
        """The repository and the commit of a revision; answers 404 if there is none."""
        repository = self.hub.repositories.get(repo_id)
        if repository is None:
            self.refuse(404, "Repository not found", "RepoNotFound")
            return None
        commit = repository.resolve(revision or "main")
        if commit is None:
            self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return None
        return repository, commit

    def whoami(self) -> None:
        self.answer({"type": "user", "name": "user", "orgs": []})

    def create(self) -> None:
        request = json.loads(self.body)
        repo_id = f"{request.get('organization') or 'user'}/{request['name']}"
        value = {"url": f"{self.hub.url}/{repo_id}", "name": repo_id, "id": repo_id}
        if repo_id in self.hub.repositories:
            self.answer({**value, "error": "You already created this model repo"}, 409)
            return
        private = request.get("private") or request.get("visibility") == "private"
        repository = self.hub.repositories[repo_id] = Repository(private=bool(private))
        repository.commit({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        self.answer(value)

    def validate(self) -> None:
        content = json.loads(self.body)["content"]
        errors = [] if content.startswith("---\n") else [{"message": "no metadata", "line": 1}]
        self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, repo_id: str, revision: str) -> None:
        if found := self.find(repo_id, revision):
            files = found[0].commits[found[1]]
            answers = []
            for file in json.loads(self.body)["files"]:
                path = file["path"]
                answers.append(
                    {
                        "path": path,
                        "uploadMode": "lfs" if is_large(path, file["size"]) else "regular",
                        "shouldIgnore": False,
                        "oid": etag_of(path, files[path]) if path in files else None,
                    }
                )
            self.answer({"files": answers})

    def lfs_batch(self, repo_id: str) -> None:
        objects = []
        for item in json.loads(self.body)["objects"]:
            href = f"{self.hub.url}/lfs/{item['oid']}"
            actions = {"upload": {"href": href, "header": {}}, "verify": {"href": f"{href}/verify", "header": {}}}
            has_it = item["oid"] in self.hub.large_files
            objects.append({**item, **({} if has_it else {"actions": actions})})
        self.answer({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self.refuse(400, "the content has another hash")
            return
        self.hub.large_files[oid] = self.body
        self.answer({})

    def lfs_verify(self, oid: str) -> None:
        if len(self.hub.large_files.get(oid, b"")) == json.loads(self.body)["size"]:
            self.answer({})
        else:
            self.refuse(404, "not uploaded")

    def commit(self, repo_id: str, branch: str) -> None:
        found = self.find(repo_id, branch)
        if not found:
            return
        repository, head = found
        files = dict(repository.commits[head])
        for line in self.body.decode().strip().split("\n"):
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                if value.get("parentCommit") not in (None, head):
                    self.refuse(412, "A commit has happened since. Please refresh and try again.")
                    return
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.large_files[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
            else:  # deletedFolder
                files = {name: content for name, content in files.items() if not name.startswith(value["path"])}
        oid = repository.commit(files, branch)
        self.answer({"commitOid": oid, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{oid}"})

    def branch(self, repo_id: str, name: str) -> None:
        if found := self.find(repo_id):
            found[0].branches.setdefault(name, found[1])
            self.answer({})

    def tag(self, repo_id: str, revision: str) -> None:
        if found := self.find(repo_id, revision):
            name = json.loads(self.body)["tag"]
            if name in found[0].tags:
                self.refuse(409, f"Tag {name} exists")
                return
            found[0].tags[name] = found[1]
            self.answer({})

    def info(self, repo_id: str, revision: str = "main") -> None:
        if found := self.find(repo_id, revision):
            siblings = [{"rfilename": name} for name in sorted(found[0].commits[found[1]])]
            names = {"_id": "0", "id": repo_id, "modelId": repo_id, "private": found[0].private, "tags": []}
            self.answer({**names, "sha": found[1], "siblings": siblings, "pipeline_tag": "translation"})

    def tree(self, repo_id: str, revision: str) -> None:
        if found := self.find(repo_id, revision):
            entries = []
            for name, content in sorted(found[0].commits[found[1]].items()):
                entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": git_hash(content)}
                if is_large(name, len(content)):
                    sha = hashlib.sha256(content).hexdigest()
                    entry["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 130}
                entries.append(entry)
            self.answer(entries)

    def resolve(self, repo_id: str, revision: str, name: str) -> None:
        if found := self.find(repo_id, revision):
            content = found[0].commits[found[1]].get(name)
            if content is None:
                self.refuse(404, f"no {name}", "EntryNotFound")
                return
            headers = {"ETag": f'"{etag_of(name, content)}"', "X-Repo-Commit": found[1]}
            start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            if start:  # the client goes on with a download
                first = int(start[1])
                headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
                self.answer(content[first:], 206, headers)
                return
            self.answer(content, 200, headers)
