"""A container registry over real HTTP: what skopeo needs of the distribution protocol, with immutable tags.

Blobs and manifests are kept by the digest of what arrived, and a digest that a client names is checked.
"""

from __future__ import annotations

import base64
import hashlib
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


class Registry:
    """`credentials` are what clients must show, as `user:password`; None lets everybody in."""

    def __init__(self, credentials: str | None = None) -> None:
        self.credentials = credentials
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self.pushes = 0
        self.address = ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: Registry
    uploads: dict[str, bytes]

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if not self._known():
            return None
        if self.path == "/v2/":
            return self._reply(200)
        if found := re.search(r"/blobs/(sha256:[0-9a-f]{64})$", self.path):
            blob = self.registry.blobs.get(found[1])
            return self._reply(404) if blob is None else self._reply(200, blob)
        reference = self.path.rpartition("/manifests/")[2]
        digest = self.registry.tags.get(reference, reference)
        manifest = self.registry.manifests.get(digest)
        if manifest is None:
            return self._reply(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "unknown"}]}')
        return self._reply(200, manifest, {"Docker-Content-Digest": digest, "Content-Type": MANIFEST_TYPE})

    def do_POST(self) -> None:
        self._body()
        if self._known():
            name = uuid.uuid4().hex
            self.uploads[name] = b""
            self._reply(202, headers={"Location": f"/v2/uploads/{name}"})

    def do_PATCH(self) -> None:
        name = self.path.rpartition("/")[2].partition("?")[0]
        self.uploads[name] += self._body()
        self._reply(202, headers={"Location": f"/v2/uploads/{name}"})

    def do_PUT(self) -> None:
        body = self._body()
        if not self._known():
            return None
        if "/manifests/" in self.path:
            digest, tag = digest_of(body), self.path.rpartition("/")[2]
            if self.registry.tags.get(tag, digest) != digest:
                return self._reply(400, b'{"errors": [{"code": "TAG_INVALID", "message": "immutable"}]}')
            self.registry.manifests[digest] = body
            self.registry.tags[tag] = digest
            self.registry.pushes += 1
            return self._reply(201, headers={"Docker-Content-Digest": digest})
        name, _, query = self.path.rpartition("/")[2].partition("?")
        content = self.uploads.pop(name) + body
        if digest_of(content) not in query.replace("%3A", ":"):
            return self._reply(400, b'{"errors": [{"code": "DIGEST_INVALID", "message": "differs"}]}')
        self.registry.blobs[digest_of(content)] = content
        return self._reply(201, headers={"Docker-Content-Digest": digest_of(content)})

    def _known(self) -> bool:
        wanted = self.registry.credentials
        if wanted is None:
            return True
        if self.headers.get("Authorization") == "Basic " + base64.b64encode(wanted.encode()).decode():
            return True
        self._reply(401, headers={"WWW-Authenticate": 'Basic realm="registry"'})
        return False

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _reply(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        given: dict[str, Any] = {"Content-Length": len(body), **(headers or {})}
        for name, value in given.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def serving(registry: Registry) -> Iterator[Registry]:
    """Serve it on a free port; `registry.address` is `127.0.0.1:PORT`."""
    handler = type("Bound", (Handler,), {"registry": registry, "uploads": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    registry.address = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
