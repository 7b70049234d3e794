"""Releases as containers: what was built is what runs, and it stops with the stack like a process does.

The image is a web server of one static binary, made here; the real image is `tests/e2e`'s business.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator

import httpx
import psutil
import pytest

from flows.adapters.local import LocalPlatform
from flows.adapters.local.commands import container_name
from flows.adapters.stack import Supervisor, down, up
from flows.adapters.stack.processes import members
from flows.domain.errors import ImageFailed
from flows.domain.release import Release
from flows.domain.routes import Routes
from flows.settings import Settings
from tests.platform import local_stack

SERVER = r"""
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void leave(int number) { (void)number; _exit(0); }

int main(void) {
    signal(SIGTERM, leave);
    struct sockaddr_in address = {.sin_family = AF_INET};
    address.sin_port = htons(atoi(getenv("SERVING_PORT")));
    inet_pton(AF_INET, getenv("SERVING_HOST"), &address.sin_addr);
    int yes = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 64)) {
        perror("cannot listen");
        return 1;
    }
    for (;;) {
        char request[8192], answer[1024], body[512];
        int client = accept(listener, 0, 0);
        if (client < 0) continue;
        ssize_t got = read(client, request, sizeof request);
        (void)got;
        snprintf(body, sizeof body, "%s %s %d",
                 getenv("SERVING_BUNDLE"), getenv("SERVING_DATABASE_URL"), getuid());
        snprintf(answer, sizeof answer,
                 "HTTP/1.1 200 OK\r\nconnection: close\r\n"
                 "content-length: %zu\r\nx-model-version: %s\r\n\r\n%s",
                 strlen(body), getenv("SERVING_VERSION"), body);
        ssize_t put = write(client, answer, strlen(answer));
        (void)put;
        close(client);
    }
}
"""
CONTAINERFILE = """
FROM scratch
COPY server /server
USER 65532
ENTRYPOINT ["/server"]
"""
IMAGE = "localhost/modelserve-test/server:latest"


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """`podman … run` over a storage of its own that holds the image."""
    missing = [program for program in ("podman", "runc", "cc") if shutil.which(program) is None]
    assert not missing, f"{', '.join(missing)} not installed; `make setup` brings what containers need"
    folder = tmp_path_factory.mktemp("containers")
    (folder / "server.c").write_text(SERVER)
    subprocess.run(["cc", "-static", "-O1", "-o", folder / "server", folder / "server.c"], check=True)
    (folder / "Containerfile").write_text(CONTAINERFILE)
    # vfs: works everywhere, and the image is small.
    # podman refuses a path of more than 50 characters here.
    runroot = tempfile.mkdtemp(prefix="modelserve-podman-")
    podman = ["podman", "--root", str(folder / "storage"), "--runroot", runroot]
    podman += ["--storage-driver", "vfs", "--runtime", "runc"]
    build = [*podman, "build", "--quiet", "--isolation", "chroot", "--tag", IMAGE, str(folder)]
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    yield podman
    subprocess.run([*podman, "rm", "--all", "--force"], capture_output=True, check=False)
    subprocess.run([*podman, "rmi", "--all", "--force"], capture_output=True, check=False)
    shutil.rmtree(runroot, ignore_errors=True)


def containers(settings: Settings, podman: list[str]) -> LocalPlatform:
    def run(release: Release, runtime: str) -> tuple[list[str], str]:
        del release, runtime
        return [*podman, "run"], IMAGE

    return LocalPlatform(settings, Supervisor(settings), containers=run)


@pytest.fixture
def settings() -> Iterator[Settings]:
    with local_stack.local_settings(runtime="podman") as settings:
        up(settings, print, only=["postgres", "envoy"])
        yield settings


def test_a_container_serves_is_replaced_when_killed_and_ends_with_the_stack(
    settings: Settings, podman: list[str]
) -> None:
    platform = containers(settings, podman)
    release = Release("flights", 1, "s3://elsewhere/flights-v1", "0" * 64, image=IMAGE)
    platform.start(release, local_stack.spec("flights"))
    platform.route("flights", Routes({"flights-v1": 100}))
    url = f"{settings.gateway_url}/models/flights/predict"
    answer = httpx.get(url, trust_env=False)
    bundle, database, user = answer.text.split()
    assert (answer.headers["x-model-version"], bundle, user) == ("1", "/bundle", "65532")
    assert "passfile" not in database
    assert database.startswith("postgresql://modelserve:")

    inside = [process for process in members(settings.state) if process.name() == "server"]
    assert len(inside) == 1
    commands = [" ".join(process.cmdline()) for process in members(settings.state)]
    assert not any(database.split(":")[2].split("@")[0] in command for command in commands)

    inside[0].kill()
    gone, _ = psutil.wait_procs(inside, timeout=5)
    assert gone
    platform.start(release, local_stack.spec("flights"))
    assert httpx.get(url, trust_env=False).status_code == 200

    platform.stop(release)
    assert not [process for process in members(settings.state) if process.name() == "server"]

    platform.start(release, local_stack.spec("flights"))
    down(settings)
    assert members(settings.state) == []
    listed = subprocess.run([*podman, "ps", "--quiet"], capture_output=True, text=True, check=True)
    assert listed.stdout == ""
    assert container_name(settings, "flights-v1").endswith("-flights-v1")


def test_a_release_without_an_image_is_refused_with_the_way_out(
    settings: Settings, podman: list[str]
) -> None:
    platform = containers(settings, podman)
    release = Release("flights", 2, "s3://elsewhere/flights-v2", "0" * 64)
    with pytest.raises(ImageFailed, match="MODELSERVE_RUNTIME=process"):
        platform.start(release, local_stack.spec("flights"))
    assert platform.running() == frozenset()
