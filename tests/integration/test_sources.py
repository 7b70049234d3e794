"""Artifacts that lie elsewhere: what comes is what was meant, or a line says why not and nothing is left."""

from __future__ import annotations

import hashlib
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flows.adapters.sources import fetch
from flows.adapters.sources.downloads import Download
from flows.domain.errors import ArtifactCorrupt, DependencyDown, ModelServeError
from flows.settings import Settings
from flows.steps.fetching import at_hand
from tests.free_ports import free_ports
from tests.integration.s3_server import ACCESS, BUCKET, client

LIMIT = 10_000_000
WEIGHTS = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"

Routes = dict[str, tuple[int, dict[str, str], bytes]]


@contextmanager
def serving(routes: Routes, certificate: Path | None = None) -> Iterator[tuple[str, list[str]]]:
    """A server of these routes on 127.0.0.1; its address, and what it was asked with which access."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.path} {self.headers.get('authorization', '')}".strip())
            status, headers, body = routes.get(self.path, (404, {}, b"{}"))
            self.send_response(status)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    scheme = "http"
    if certificate is not None:
        scheme = "https"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"{scheme}://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=127.0.0.1",
    ]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", f"{path}.crt"]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


@pytest.fixture
def web(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    moved = {"location": "/real/model.onnx"}
    routes: Routes = {
        "/real/model.onnx": (200, {}, WEIGHTS),
        "/latest/model.onnx": (302, moved, b""),
        "/short/model.onnx": (200, {"content-length": str(len(WEIGHTS) + 5), "connection": "close"}, WEIGHTS),
        "/private/model.onnx": (403, {}, b""),
        "/broken/model.onnx": (503, {}, b""),
    }
    with serving(routes, certificate) as (url, _):
        yield url


def test_a_file_of_the_web_is_proved_by_its_digest(web: str, tmp_path: Path) -> None:
    path, sentence = fetch(f"{web}/latest/model.onnx", tmp_path, digest=f"sha256:{SHA256}", limit=LIMIT)
    assert path == tmp_path / "model.onnx"
    assert path.read_bytes() == WEIGHTS
    assert sentence == f"downloaded {web}/latest/model.onnx: 1280000 bytes, sha256:{SHA256}"


@pytest.mark.parametrize(
    ("path", "digest", "error", "message"),
    [
        ("/real/model.onnx", None, ArtifactCorrupt, "needs --digest sha256:"),
        (
            "/real/model.onnx",
            "sha256:" + "0" * 64,
            ArtifactCorrupt,
            f"its sha256 is {SHA256}, wanted was 000",
        ),
        ("/real/model.onnx", "md5:12", ArtifactCorrupt, "expected sha256: and 64 hexadecimal digits"),
        ("/none/model.onnx", f"sha256:{SHA256}", ArtifactCorrupt, "has no such thing"),
        ("/private/model.onnx", f"sha256:{SHA256}", DependencyDown, "refuses"),
        ("/broken/model.onnx", f"sha256:{SHA256}", DependencyDown, "with HTTP 503; try again later"),
        ("/short/model.onnx", f"sha256:{SHA256}", DependencyDown, "cannot be reached"),
        ("/", f"sha256:{SHA256}", ArtifactCorrupt, "names no file"),
    ],
)
def test_what_the_web_does_wrong_is_one_line(
    path: str, digest: str | None, error: type[ModelServeError], message: str, web: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        fetch(web + path, tmp_path, digest=digest, limit=LIMIT)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_address_that_is_not_encrypted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactCorrupt, match="is not encrypted"):
        fetch("http://127.0.0.1:1/model.onnx", tmp_path, digest=f"sha256:{SHA256}", limit=LIMIT)


@pytest.mark.parametrize(
    "uri", ["https://127.0.0.1:{}/m.onnx", "hf://a/b@" + COMMIT, "models:/churn/1", "s3://models/x"]
)
def test_a_source_that_is_away_is_one_line(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [port] = free_ports(1)
    for name in ("HF_ENDPOINT", "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ACCESS["secret"])
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    digest = f"sha256:{SHA256}" if uri.startswith("https") else None
    settings = Settings(state=tmp_path / "state")
    with pytest.raises(DependencyDown, match=r"cannot be (reached|used)") as caught:  # noqa: SIM117
        with at_hand(settings, [uri.format(port)], digest, lambda _line: None):
            pass
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "state" / "staging").iterdir()) == []


@pytest.mark.parametrize("limit", [1000, 1_279_999])
def test_more_than_the_limit_is_not_kept(limit: int, web: str, tmp_path: Path) -> None:
    settings = Settings(state=tmp_path / "state", bundle_limit_bytes=limit)
    with pytest.raises(ArtifactCorrupt, match="is larger than the limit"):  # noqa: SIM117
        with at_hand(settings, [f"{web}/real/model.onnx"], f"sha256:{SHA256}", lambda _line: None):
            pass
    assert list((tmp_path / "state" / "staging").iterdir()) == []


def test_a_full_disk_is_one_line(web: str) -> None:
    """/dev/full is a disk without space."""
    with pytest.raises(ArtifactCorrupt, match="no space for it") as caught:
        Download(Path("/dev"), LIMIT, None).write(f"{web}/real/model.onnx", "full", [WEIGHTS])
    assert "MODELSERVE_STATE" in str(caught.value)


def test_what_was_downloaded_goes_again(web: str, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a")
    settings = Settings(state=tmp_path / "state")
    given = [f"{web}/real/model.onnx", str(tmp_path / "labels.txt")]
    with at_hand(settings, given, f"sha256:{SHA256}", lambda _line: None) as paths:
        assert [path.name for path in paths] == ["model.onnx", "labels.txt"]
        assert paths[0].read_bytes() == WEIGHTS
    assert not paths[0].exists()
    assert paths[1].exists()


# -- a bucket ---------------------------------------------------------------------------------------


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ACCESS["secret"])
    for key in ("trained/saved/saved_model.pb", "trained/saved/variables/data", "trained/saved_other/x"):
        client(s3_endpoint).put_object(Bucket=BUCKET, Key=key, Body=WEIGHTS)


@pytest.mark.usefixtures("bucket")
def test_an_object_and_a_prefix_of_a_bucket(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, sentence = fetch(f"s3://{BUCKET}/trained/saved/", tmp_path / "a", digest=None, limit=LIMIT)
    found = sorted(path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file())
    assert (whole.name, found) == ("saved", ["saved_model.pb", "variables/data"])
    assert "2 files" in sentence
    one, _ = fetch(
        f"s3://{BUCKET}/trained/saved/saved_model.pb", tmp_path / "b", digest=f"sha256:{SHA256}", limit=LIMIT
    )
    assert one.read_bytes() == WEIGHTS


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize(
    ("uri", "digest", "message"),
    [
        (f"s3://{BUCKET}/trained/none", None, "nothing is there"),
        (f"s3://{BUCKET}", None, "names a bucket and nothing in it"),
        (f"s3://{BUCKET}/trained/saved", f"sha256:{SHA256}", "a digest is for one file, and these are 2"),
        (f"s3://{BUCKET}/trained/saved/saved_model.pb", "sha256:" + "1" * 64, "wanted was 111"),
    ],
)
def test_what_is_wrong_with_a_bucket_is_one_line(
    uri: str, digest: str | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactCorrupt, match=message):
        fetch(uri, tmp_path, digest=digest, limit=LIMIT)


# -- a hub ------------------------------------------------------------------------------------------


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


CONFIG = b'{"architectures": ["BertModel"]}'


def hub_routes(*, listed: str = SHA256, name: str = "model.safetensors") -> Routes:
    large = {
        "type": "file",
        "path": name,
        "size": len(WEIGHTS),
        "oid": "0" * 40,
        "lfs": {"oid": listed, "size": 1},
    }
    pickle = {"type": "file", "path": "pytorch_model.bin", "oid": "1" * 40}
    first = [{"type": "directory", "path": "sub", "oid": "2" * 40}, large, pickle]
    second = [
        {"type": "file", "path": "config.json", "oid": git_blob(CONFIG)},
        {"type": "file", "path": "sub/vocab.txt", "oid": git_blob(b"a")},
        {"type": "file", "path": ".gitattributes", "oid": "3" * 40},
    ]
    tree = f"/api/models/acme/tiny/tree/{COMMIT}?recursive=true"
    resolve = f"/acme/tiny/resolve/{COMMIT}"
    return {
        tree: (200, {"link": f'<{tree}&cursor=b>; rel="next"'}, json.dumps(first).encode()),
        f"{tree}&cursor=b": (200, {}, json.dumps(second).encode()),
        f"{resolve}/model.safetensors": (302, {"location": "/store/weights"}, b""),
        "/store/weights": (200, {}, WEIGHTS),
        f"{resolve}/config.json": (200, {}, CONFIG),
        f"{resolve}/sub/vocab.txt": (200, {}, b"a"),
    }


def test_a_commit_of_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(hub_routes()) as (url, asked):
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("HF_TOKEN", "secret")
        folder, sentence = fetch(f"hf://acme/tiny@{COMMIT}", tmp_path, digest=None, limit=LIMIT)
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert (folder.name, found) == ("tiny", ["config.json", "model.safetensors", "sub/vocab.txt"])
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert "3 files" in sentence
    assert all(line.endswith("Bearer secret") for line in asked)


@pytest.mark.parametrize(
    ("uri", "routes", "message"),
    [
        ("hf://acme/tiny", hub_routes(), "the revision must be a commit"),
        ("hf://acme/tiny@main", hub_routes(), "the revision must be a commit"),
        ("hf://tiny", hub_routes(), "expected hf://ORG/REPOSITORY@COMMIT"),
        (f"hf://acme/other@{COMMIT}", hub_routes(), "has no such thing"),
        (f"hf://acme/tiny@{COMMIT}", hub_routes(listed="f" * 64), "and is listed as ffff"),
        (f"hf://acme/tiny@{COMMIT}", hub_routes(name="../../model.safetensors"), "which leaves its folder"),
    ],
)
def test_what_is_wrong_with_a_hub_is_one_line(
    uri: str, routes: Routes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A client makes one of `..` before it asks.
    with serving({**routes, "/acme/tiny/model.safetensors": (200, {}, WEIGHTS)}) as (url, _):
        monkeypatch.setenv("HF_ENDPOINT", url)
        with pytest.raises(ArtifactCorrupt) as caught:
            fetch(uri, tmp_path / "into", digest=None, limit=LIMIT)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = f"/api/models/acme/tiny/tree/{COMMIT}?recursive=true"
    with serving({tree: (200, {}, b"<html>sign in</html>")}) as (url, _):
        monkeypatch.setenv("HF_ENDPOINT", url)
        with pytest.raises(DependencyDown, match="in no form that is known"):
            fetch(f"hf://acme/tiny@{COMMIT}", tmp_path, digest=None, limit=LIMIT)
