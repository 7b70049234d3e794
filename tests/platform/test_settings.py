"""Settings: what a child process is told is what its parent had, and mistakes are said at once."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from flows.settings import Ports, Settings


def test_a_child_process_builds_the_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ports = Ports(gateway=11000, redis=11001)
    parent = Settings(state=tmp_path / "x y", ports=ports, gateway_timeout_seconds=1.5, runtime="podman")
    for name, value in parent.environment().items():
        monkeypatch.setenv(name, value)
    assert Settings() == parent


def test_addresses_follow_the_ports_until_they_are_given() -> None:
    settings = Settings(ports=Ports(redis=7000, prefect=7001), prometheus_url="http://elsewhere:9090")
    assert settings.redis_url == "redis://127.0.0.1:7000/0"
    assert settings.prefect_url == "http://127.0.0.1:7001/api"
    assert settings.prometheus_url == "http://elsewhere:9090"


def test_a_cluster_needs_its_addresses() -> None:
    with pytest.raises(ValidationError, match="MODELSERVE_REGISTRY_URL"):
        Settings(mode="kubernetes")


@pytest.mark.parametrize("folder", ["a;b", "a#b", "a[b]", "a*b", "100%"])
def test_a_state_folder_that_supervisord_cannot_name_is_refused(folder: str) -> None:
    with pytest.raises(ValidationError, match="cannot name"):
        Settings(state=Path(folder))


def test_the_state_folder_is_absolute_and_no_url_carries_a_password(tmp_path: Path) -> None:
    settings = Settings(state=tmp_path)
    assert Settings().state.is_absolute()
    assert settings.registry_url.endswith(f"?passfile={tmp_path}/secrets/postgres-passwords")


@pytest.mark.parametrize("model", [Settings, Ports])
def test_every_setting_says_what_it_is(model: type) -> None:
    source = inspect.getsource(model)
    for name in model.model_fields:  # type: ignore[attr-defined]
        documented = re.search(
            rf'^    {name}: .*(?:\n        .*)*\n(?:    \)\n)?    """', source, re.MULTILINE
        )
        plain = name in {"prometheus", "alertmanager", "redis", "postgres", "ports"}
        assert documented or plain, f"{model.__name__}.{name} has no docstring"
