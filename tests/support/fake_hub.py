"""A stand-in for the hub's HTTP interface: repositories, small files in a commit, and large ones through git-lfs."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_tests"


class FakeHub:
    """What was uploaded, by repository and path."""

    def __init__(self) -> None:
        self.url = ""
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.commits: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.reads_only = False
        """Whether the token may not write."""

    def answer(self, verb: str, path: str, data: bytes, token: str | None) -> tuple[int, Any]:
        """Status and body of one request."""
        self.calls.append(f"{verb} {path}")
        if path.startswith("/lfs/"):
            self.objects[path.removeprefix("/lfs/")] = data
            return 200, {}
        if token != f"Bearer {TOKEN}" or (self.reads_only and verb == "POST"):
            return 403 if token else 401, {"error": "not allowed"}
        if path == "/api/repos/create":
            body = json.loads(data)
            name = f"{body.get('organization', 'me')}/{body['name']}"
            known = name in self.repositories
            self.repositories.setdefault(name, {})
            self.private.setdefault(name, bool(body.get("private") or body.get("visibility") == "private"))
            url = f"{self.url}/{name}"
            return (409, {"error": "exists", "url": url}) if known else (200, {"url": url, "name": name})
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        owner, _, rest = path.removeprefix("/api/models/").lstrip("/").partition("/")
        name = f"{owner}/{rest.partition('/')[0]}".removesuffix(".git")
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.url}/lfs/{one['oid']}"}}}
                for one in json.loads(data)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        if "/preupload/" in path:
            files = [
                {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular"}
                for one in json.loads(data)["files"]
            ]
            return 200, {"files": [{**one, "shouldIgnore": False, "oid": None} for one in files]}
        if "/commit/" in path:
            for line in map(json.loads, data.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    self.commits.append(value["summary"])
                elif line["key"] == "file":
                    self.repositories[name][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.repositories[name][value["path"]] = self.objects[value["oid"]]
            return 200, {"commitUrl": f"{self.url}/{name}/commit/1", "commitOid": "1", "success": True}
        if verb == "GET" and name in self.repositories:
            return 200, {"id": name, "sha": "0" * 40, "private": self.private[name], "siblings": [], "tags": []}
        return 404, {"error": f"no {path} here"}


@contextmanager
def serving_hub(hub: FakeHub) -> Iterator[str]:
    """The address at which it answers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

        def _do(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                data = b""
                while size := int(self.rfile.readline(), 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = hub.answer(
                self.command, self.path.partition("?")[0], data, self.headers.get("Authorization")
            )
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = _do

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub.url
    finally:
        server.shutdown()
        server.server_close()
