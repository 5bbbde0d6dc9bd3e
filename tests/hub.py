"""A stand-in for the hub: the part of its interface by which huggingface_hub makes, fills and reads a repository."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

COMMIT = "a" * 40


class _Handler(BaseHTTPRequestHandler):
    server: Any

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.tokens.add(self.headers.get("authorization"))
        if self.path == "/api/repos/create":
            name = "someone/" + json.loads(body)["name"]
            self.server.repos.setdefault(name, {})
            self._json({"url": f"{self.server.endpoint}/{name}", "id": name})
        elif "/preupload/" in self.path:
            named = [file["path"] for file in json.loads(body)["files"]]
            kept = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in named]
            self._json({"files": kept})
        elif "/commit/" in self.path:
            name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    value = entry["value"]
                    self.server.repos[name][value["path"]] = base64.b64decode(value["content"])
            self._json(
                {"commitUrl": f"{self.server.endpoint}/{name}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
            )
        elif self.path.startswith("/api/validate-yaml"):
            self.server.validated.append(json.loads(body)["content"])
            self._json({"errors": [], "warnings": []})
        else:
            self._json({"error": f"no {self.path}"}, 404)

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/"):
            name, tree, _ = self.path.removeprefix("/api/models/").partition("?")[0].partition("/tree/")
            name = name.partition("/revision/")[0]
            if name not in self.server.repos:
                return self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            if tree:
                kept = self.server.repos[name].items()
                return self._json(
                    [
                        {"type": "file", "path": path, "size": len(content), "oid": sha1(content).hexdigest()}
                        for path, content in kept
                    ]
                )
            files = [{"rfilename": path} for path in self.server.repos[name]]
            return self._json(
                {"id": name, "sha": COMMIT, "siblings": files, "private": False, "tags": [], "downloads": 0}
            )
        name, mark, place = unquote(self.path[1:].partition("?")[0]).partition("/resolve/")
        content = self.server.repos.get(name, {}).get(place.partition("/")[2])
        if not mark or content is None:
            code = "EntryNotFound" if name in self.server.repos else "RepoNotFound"
            return self._json({"error": "not found"}, 404, {"X-Error-Code": code})
        self.send_response(200)
        for key, value in (
            ("X-Repo-Commit", COMMIT),
            ("ETag", f'"{sha1(content).hexdigest()}"'),
            ("Content-Length", str(len(content))),
        ):
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
        return None

    do_HEAD = do_GET

    def _json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for key, text in {
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            **(headers or {}),
        }.items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def standing_in() -> Iterator[Any]:
    """A server on this machine: `endpoint`, `repos` (name → file → bytes), `tokens` and `validated` cards."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.endpoint, server.repos = f"http://127.0.0.1:{server.server_port}", {}
    server.tokens, server.validated = set(), []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
