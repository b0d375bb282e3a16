"""A hub on this machine: an HTTP server that huggingface_hub's own client talks to, and a list of what it was asked."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class FakeHub:
    """Repositories as branch → commit and commit → files; every request is in ``asked``."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.branches: dict[str, dict[str, str]] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches[repo][branch]]

    def put(self, repo: str, files: dict[str, bytes], branch: str = "main", private: bool = False) -> str:
        """Add files to a branch, which is made if need be; return the commit."""
        self.private.setdefault(repo, private)
        known = self.branches.setdefault(repo, {})
        new = {**self.commits.get(known.get(branch, known.get("main", "")), {}), **files}
        sha = hashlib.sha1(repr(sorted(new.items())).encode()).hexdigest()
        self.commits[sha], known[branch] = new, sha
        return sha

    def downloads(self) -> list[str]:
        """The files that were fetched."""
        return sorted(
            {line.split("/", 5)[5] for line in self.asked if line.startswith("GET /") and "/resolve/" in line}
        )

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        parts = [unquote(part) for part in urlsplit(path).path.strip("/").split("/")]
        if parts == ["api", "repos", "create"]:
            wanted = json.loads(body)
            repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            known = repo in self.branches
            if not known:
                private = wanted.get("private") or wanted.get("visibility") == "private"
                self.put(repo, {".gitattributes": b""}, private=bool(private))
            return (409 if known else 200), {"url": f"{self.url}/{repo}"}, {}
        if parts[:2] == ["api", "validate-yaml"]:
            return 200, {"errors": [], "warnings": []}, {}
        if parts[:2] == ["api", "models"] and len(parts) > 3 and "/".join(parts[2:4]) in self.branches:
            return self._model("/".join(parts[2:4]), parts[4:], body)
        if len(parts) > 4 and parts[2] == "resolve" and "/".join(parts[:2]) in self.branches:
            return self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return 404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"}

    def _model(self, repo: str, rest: list[str], body: bytes) -> tuple[int, Any, dict[str, str]]:
        kind, revision = (rest[0], rest[1]) if len(rest) > 1 else ("revision", "main")
        if kind == "branch":
            self.put(repo, {}, revision)
            return 200, {}, {}
        sha = self.branches[repo].get(revision, revision if revision in self.commits else None)
        if sha is None:
            return 404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"}
        files = self.commits[sha]
        if kind == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return 200, {"files": modes}, {}
        if kind == "commit":
            lines = [json.loads(line) for line in body.splitlines() if line.strip()]
            for value in [line["value"] for line in lines if line["key"] == "deletedFile"]:
                files = {name: data for name, data in files.items() if name != value["path"]}
            added = [line["value"] for line in lines if line["key"] == "file"]
            self.commits[sha := f"{len(self.commits):040x}"] = files
            self.branches[repo][revision] = sha
            sha = self.put(repo, {value["path"]: base64.b64decode(value["content"]) for value in added}, revision)
            return 200, {"commitUrl": f"{self.url}/{repo}/commit/{sha}", "commitOid": sha}, {}
        if kind == "tree":
            return 200, [{"type": "file", "path": n, "size": len(d), "oid": _oid(d)} for n, d in files.items()], {}
        siblings = [{"rfilename": name} for name in files]
        return 200, {"id": repo, "sha": sha, "private": self.private[repo], "siblings": siblings}, {}

    def _file(self, repo: str, revision: str, name: str) -> tuple[int, Any, dict[str, str]]:
        sha = self.branches[repo].get(revision, revision)
        if sha not in self.commits:
            return 404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"}
        if name not in self.commits[sha]:
            return 404, {"error": "no such file"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}
        data = self.commits[sha][name]
        return 200, data, {"X-Repo-Commit": sha, "ETag": f'"{_oid(data)}"'}


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.asked.append(f"{self.command} {self.path}")
            status, value, headers = hub.answer(self.command, self.path, body)
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, text)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST = _serve  # noqa: N815 (names of http.server)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler
