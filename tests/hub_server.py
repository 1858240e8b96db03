"""A Hub on the loopback address: what `huggingface_hub` and `datasets` ask, answered from memory.

As the real one, it sends small files itself (a redirect on the same host) and large ones (LFS) from
another host, names the commit of every answer, and says in X-Error-Code what it does not have. A
request of any other kind is answered by 501 and noted in `unknown`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS = (".safetensors", ".bin", ".parquet")  # are sent from the other host
GRANTED, STRANGER = "hf_granted", "hf_stranger"  # tokens: one may read what is gated


@dataclass(frozen=True)
class File:
    """A file of a repository; text files are known by git's hash, large ones by SHA-256."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.blob

    def entry(self, path: str) -> dict[str, Any]:
        """Describe the file as /tree and /paths-info do."""
        size = len(self.content)
        of_lfs = {"oid": self.sha256, "size": size, "pointerSize": 134}
        entry = {"type": "file", "oid": self.blob, "size": size, "path": path}
        return {**entry, "lfs": of_lfs} if self.lfs else entry


class Repository:
    """One commit, `main`.

    Args:
        kind: models or datasets.
        name: owner/name.
        files: path -> content.
        gated: whether a token that may read it is needed.
    """

    def __init__(self, kind: str, name: str, files: dict[str, bytes], *, gated: bool = False):
        self.kind, self.name, self.gated = kind, name, gated
        self.files = {path: File(data, path.endswith(LFS)) for path, data in files.items()}
        seen = json.dumps({path: file.etag for path, file in sorted(self.files.items())})
        self.commit = hashlib.sha1(f"{kind}/{name} {seen}".encode()).hexdigest()

    def below(self, folder: str, *, recursive: bool) -> list[dict[str, Any]]:
        """List a folder as /tree does; empty if there is none."""
        start = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, file in self.files.items():
            if not path.startswith(start):
                continue
            *folders, _ = path.removeprefix(start).split("/")
            for depth in range(1, len(folders) + 1):
                inner = start + "/".join(folders[:depth])
                if depth == 1 or recursive:
                    entries[inner] = _directory(inner)
            if not folders or recursive:
                entries[path] = file.entry(path)
        return list(entries.values())


def _directory(path: str) -> dict[str, Any]:
    oid = hashlib.sha1(path.encode()).hexdigest()
    return {"type": "directory", "oid": oid, "size": 0, "path": path}


@dataclass
class Faults:
    """What goes wrong, by pattern of the address.

    Args:
        delay: seconds before an answer.
        broken: how many times the connection is closed after half of the bytes that were left.
        status: is answered instead.
    """

    delay: dict[str, float] = field(default_factory=dict)
    broken: dict[str, int] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)


class Hub:
    """The server, in a thread of its own, and what it was asked."""

    def __init__(self, *repositories: Repository):
        self.repositories = {(each.kind, each.name): each for each in repositories}
        self.faults = Faults()
        self.answered: list[tuple[str, str, int]] = []  # method, address, status
        self.unknown: list[str] = []  # nothing of this server answers that
        self.lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.other_host = f"http://localhost:{self.server.server_port}"

    @contextmanager
    def running(self) -> Iterator[Hub]:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            self.server.shutdown()
            self.server.server_close()

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Give the variables of a process that knows this Hub only, with its caches in home."""
        others = re.compile("HF_|HUGGING_?FACE|TRANSFORMERS_OFFLINE|XDG_CACHE_HOME|.*_proxy", re.I)
        kept = {name: value for name, value in os.environ.items() if not others.match(name)}
        return kept | {"HF_HOME": str(home), "HF_ENDPOINT": self.endpoint} | more

    def summary(self) -> list[str]:
        """List what was answered, alike requests in one line, with their number."""
        lines = Counter(
            f"{method:4} {status} {re.sub('[0-9a-f]{40,64}', '<hash>', address)}"
            for method, address, status in self.answered
        )
        return [f"{count:3} x {line}" for line, count in sorted(lines.items())]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    status = 0

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.form = parse_qs(self.rfile.read(length).decode()) if length else {}
        address = urlsplit(self.path)
        for pattern, seconds in self.hub.faults.delay.items():
            if re.search(pattern, self.path):
                time.sleep(seconds)
        wrong = [
            s for pattern, s in self.hub.faults.status.items() if re.search(pattern, self.path)
        ]
        try:
            if wrong:
                self._send(wrong[0])
            else:
                self._route(unquote(address.path), parse_qs(address.query))
        except (BrokenPipeError, ConnectionResetError):  # the other side has given up
            self.close_connection = True
        with self.hub.lock:
            self.hub.answered.append((self.command, self.path, self.status))

    def _route(self, path: str, query: dict[str, list[str]]) -> None:
        reading = self.command in ("GET", "HEAD")
        if path == "/" and self.command == "HEAD":  # is anybody there?
            return self._send(200)
        if path == "/api/agent-harnesses":  # huggingface_hub asks it once a day
            return self._json({"standardEnvVars": [], "harnesses": {}})
        if reading and (match := re.fullmatch("/other-host/([0-9a-f]{64})", path)):
            return self._large(match[1])
        cached = re.fullmatch("/api/resolve-cache/(models|datasets)/(.+?/.+?)/(.+?)/(.+)", path)
        if reading and cached:
            return self._small(*cached.groups())
        resolve = re.fullmatch("/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if reading and resolve:
            return self._resolve("datasets" if resolve[1] else "models", *resolve.groups()[1:])
        api = re.fullmatch("/api/(models|datasets)/([^/]+/[^/]+)(?:/(.+))?", path)
        if api:
            repository = self._repository(api[1], api[2])
            if repository is not None:
                self._api(repository, api[3] or "revision/main", query)
            return None
        return self._unknown()

    def _api(self, repository: Repository, what: str, query: dict[str, list[str]]) -> None:
        word, _, rest = what.partition("/")
        revision, _, folder = rest.partition("/")
        if word not in ("revision", "tree", "paths-info"):
            return self._unknown()
        if (self.command == "POST") != (word == "paths-info"):
            return self._unknown()
        if revision not in ("main", repository.commit):
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if word == "revision":
            files = [{"rfilename": path} for path in repository.files]
            about = {"id": repository.name, "sha": repository.commit, "siblings": files}
            gated = "manual" if repository.gated else False
            about |= {"private": False, "gated": gated, "tags": [], "downloads": 0, "likes": 0}
            return self._json(about)
        if word == "tree":
            recursive = query.get("recursive", ["False"])[0].lower() == "true"
            entries = repository.below(folder, recursive=recursive)
            if folder and not entries:
                return self._error(404, "EntryNotFound", f"{folder} does not exist on main")
            return self._json(entries)
        found = []
        for path in self.form.get("paths", []):
            if path in repository.files:
                found.append(repository.files[path].entry(path))
            elif repository.below(path, recursive=False):
                found.append(_directory(path))
        return self._json(found)

    def _resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        repository = self._repository(kind, name)
        if repository is None:
            return
        if revision not in ("main", repository.commit):
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if not self._may_read(repository):
            return
        file = repository.files.get(path)
        if file is None:
            return self._error(404, "EntryNotFound", "Entry not found", repository.commit)
        headers = {"X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
        headers |= {"X-Linked-Size": str(len(file.content)), "X-Linked-Etag": f'"{file.etag}"'}
        if file.lfs:
            location = f"{self.hub.other_host}/other-host/{file.sha256}"
            return self._send(302, headers | {"Location": location})
        location = f"/api/resolve-cache/{kind}/{name}/{repository.commit}/{quote(path)}"
        return self._send(307, headers | {"Location": location})

    def _small(self, kind: str, name: str, commit: str, path: str) -> None:
        repository = self.hub.repositories[kind, name]
        file = repository.files[path]
        self._content(file, {"X-Repo-Commit": commit})

    def _large(self, digest: str) -> None:
        if "Authorization" in self.headers:
            return self._unknown()  # a token that leaves the Hub
        for repository in self.hub.repositories.values():
            for file in repository.files.values():
                if file.sha256 == digest:
                    return self._content(file, {})
        return self._send(404)

    def _content(self, file: File, headers: dict[str, str]) -> None:
        headers |= {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self._send(200, headers, file.content)
        first, last = int(wanted[1]), int(wanted[2] or len(file.content) - 1)
        if first >= len(file.content):
            return self._send(416, headers | {"Content-Range": f"bytes */{len(file.content)}"})
        part = file.content[first : last + 1]
        of = f"bytes {first}-{first + len(part) - 1}/{len(file.content)}"
        return self._send(206, headers | {"Content-Range": of}, part)

    def _repository(self, kind: str, name: str) -> Repository | None:
        """Find a repository, or say that it does not exist: 401 to who has not logged in."""
        found = self.hub.repositories.get((kind, name))
        if found is None:
            status = 404 if "Authorization" in self.headers else 401
            self._error(status, "RepoNotFound", "Repository not found")
        return found

    def _may_read(self, repository: Repository) -> bool:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not repository.gated or token == GRANTED:
            return True
        status = 403 if token else 401
        what = f"Access to {repository.kind[:-1]} {repository.name} is restricted"
        self._error(status, "GatedRepo", f"{what} and you are not in the authorized list.")
        return False

    def _error(self, status: int, code: str, message: str, commit: str | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        headers |= {"X-Repo-Commit": commit} if commit else {}
        self._send(status, headers, json.dumps({"error": message}).encode())

    def _json(self, value: Any) -> None:
        headers = {"Content-Type": "application/json; charset=utf-8"}
        self._send(200, headers, json.dumps(value).encode())

    def _unknown(self) -> None:
        with self.hub.lock:
            self.hub.unknown.append(f"{self.command} {self.path}")
        self._send(501)

    def _send(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.status = status
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self._breaks():
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(body)

    def _breaks(self) -> bool:
        with self.hub.lock:
            for pattern, times in self.hub.faults.broken.items():
                if times and re.search(pattern, self.path):
                    self.hub.faults.broken[pattern] -= 1
                    return True
        return False
