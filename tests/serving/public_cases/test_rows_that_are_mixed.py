"""Answers that belong to other clients' rows, given with status 200."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.serving.model_bundles import write_bundle
from tests.serving.refusals import accepted, refusal
from tests.serving.server_runs import threaded

STEPS, FEATURES, HIDDEN, LAYERS = 5, 3, 4, 2
SERIES = {"name": "series", "type": "number", "shape": [STEPS, FEATURES]}
TORCH = {"kind": "pytorch", "file": "model.pt"}


def output(name: str, *shape: int, **more: object) -> dict[str, object]:
    return {"name": name, "type": "number", "shape": list(shape), **more}


def module_bundle(
    folder: Path,
    code: str,
    *,
    inputs: list[dict[str, Any]],
    outputs: list[dict[str, Any]],
    state: dict[str, Any] | None = None,
    **serving: object,
) -> Path:
    """A PyTorch model whose build() is the code."""
    return write_bundle(
        folder,
        name="m",
        signature={"inputs": inputs, "outputs": outputs},
        serving={"runtime": TORCH, **serving},
        files={"handler.py": "import torch\nfrom torch import nn\n" + code},
        write=lambda target: torch.save(state or {}, target / "model.pt"),
    )


RECURRENT = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.{kind}({features}, {hidden}, {layers}, batch_first={first})

    def forward(self, series):
        steps, state = self.net(series)
        return steps, state[0] if isinstance(state, tuple) else state

def build():
    return Model()
"""


def recurrent(kind: str, *, first: bool = True) -> tuple[str, Any]:
    torch.manual_seed(1)
    net = getattr(torch.nn, kind)(FEATURES, HIDDEN, LAYERS, batch_first=first).eval()
    code = RECURRENT.format(kind=kind, features=FEATURES, hidden=HIDDEN, layers=LAYERS, first=first)
    return code, net


def state_of(net: Any) -> dict[str, Any]:
    return {f"net.{name}": value for name, value in net.state_dict().items()}


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_the_state_of_a_recurrent_layer_is_refused_and_says_what_to_write(tmp_path: Path, kind: str) -> None:
    """Its rows are the second axis, batch_first or not (pytorch/pytorch#19675); under load 906 of 960
    answers were other clients' rows."""
    code, net = recurrent(kind)
    bundle = module_bundle(
        tmp_path,
        code,
        inputs=[SERIES],
        outputs=[output("steps", STEPS, HIDDEN), output("h_n", LAYERS, HIDDEN)],
        state=state_of(net),
    )
    message = refusal(bundle)
    assert "output h_n has shape (2, 1, 4) for 1 rows, expected (1, 2, 4)" in message
    assert "`batch_axis: 1`" in message


def test_a_batch_of_another_axis_is_transposed_where_the_signature_says_so(tmp_path: Path) -> None:
    """Input and output: a layer that is not batch_first takes (steps, rows, features)."""
    code, net = recurrent("LSTM", first=False)
    bundle = module_bundle(
        tmp_path,
        code,
        inputs=[{**SERIES, "batch_axis": 1}],
        outputs=[output("steps", STEPS, HIDDEN, batch_axis=1), output("h_n", LAYERS, HIDDEN, batch_axis=1)],
        state=state_of(net),
    )
    rows = np.random.default_rng(2).normal(size=(32, STEPS, FEATURES)).astype(np.float32)
    with torch.no_grad():
        steps, (h_n, _) = net(torch.from_numpy(rows).transpose(0, 1))
    with threaded(bundle) as server, server.client() as client, ThreadPoolExecutor(8) as clients:

        def ask(row: int) -> Any:
            answer = client.post("/predict", json={"instances": [rows[row].tolist()]})
            assert answer.status_code == 200, answer.text
            return answer.json()["predictions"][0]

        for row, found in enumerate(clients.map(ask, range(32))):
            np.testing.assert_allclose(found["h_n"], h_n[:, row], atol=1e-5)
            np.testing.assert_allclose(found["steps"], steps[:, row], atol=1e-5)


ONE_INPUT = """
class Model(nn.Module):
    def forward(self, x):
        {body}

def build():
    return Model()
"""


def of_x(folder: Path, body: str, *shape: int, **serving: object) -> Path:
    return module_bundle(
        folder,
        ONE_INPUT.format(body=body),
        inputs=[output("x", 2)],
        outputs=[output("y", *shape)],
        **serving,
    )


@pytest.mark.parametrize(
    ("body", "shape", "says"),
    [
        ("return x.sum(1).squeeze()", (), "output y has shape () for 1 rows"),
        ("return x.t()", (2,), "`batch_axis: 1`"),
        ("return x.mean(0)", (2,), "output y has shape (2,) for 1 rows, expected (1, 2)"),
        ("return x.reshape(-1, 1)", (2,), "output y has shape (2, 1) for 1 rows"),
        ("return (x - x.mean(0)) + x.mean(0).sum()", (2,), "alone gives"),
        ("return x.flip(0)", (2,), "together"),
        ("return torch.sort(x, 0).values", (2,), "alone gives"),
        ("return nn.functional.batch_norm(x, None, None, training=True)", (2,), ""),
    ],
)
def test_models_that_lose_or_mix_their_rows_do_not_become_ready(
    tmp_path: Path, body: str, shape: tuple[int, ...], says: str
) -> None:
    """`squeeze()` is the usual way to lose an axis (NVIDIA/DeepLearningExamples#765), and a forgotten
    eval() to mix rows."""
    assert says in refusal(of_x(tmp_path, body, *shape))


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("return x.sum(1, keepdim=True)", ()),
        ("return x.sum(1)", (1,)),
        ("return x[:, :, None, None]", (2,)),
        ("return x * 2", (2,)),
        ("return x.double()", (2,)),
    ],
)
def test_axes_of_one_behind_the_rows_may_differ(tmp_path: Path, body: str, shape: tuple[int, ...]) -> None:
    accepted(of_x(tmp_path, body, *shape))


@pytest.mark.parametrize("forms", ["torchscript", "module"])
def test_a_state_that_all_clients_would_share_is_refused(tmp_path: Path, forms: str) -> None:
    """A voice-activity detector keeps its state between calls."""
    code = """
class Detector(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.state = torch.zeros(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.state = self.state * 0.5 + x.mean(0)
        return x + self.state
"""
    if forms == "module":
        bundle = module_bundle(
            tmp_path,
            code + "\ndef build():\n    return Detector()\n",
            inputs=[output("x", 2)],
            outputs=[output("y", 2)],
        )
    else:
        (tmp_path / "detector.py").write_text("import torch\n" + code)
        import importlib.util

        spec = importlib.util.spec_from_file_location("detector", tmp_path / "detector.py")
        assert spec is not None
        assert spec.loader is not None
        source = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(source)

        def write(folder: Path) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                torch.jit.save(torch.jit.script(source.Detector()), folder / "model.pt")

        signature = {"inputs": [output("x", 2)], "outputs": [output("y", 2)]}
        bundle = write_bundle(
            tmp_path / "bundle", name="m", signature=signature, serving={"runtime": TORCH}, write=write
        )
    message = refusal(bundle)
    assert "output y: row 0 alone gives" in message
    assert "sequences are not supported" in message or "must not change its answer" in message


def test_random_answers_are_served_where_the_model_says_so(tmp_path: Path) -> None:
    body = "return x + torch.rand(x.shape[0], 2)"
    assert "`serving: {deterministic: false}`" in refusal(of_x(tmp_path / "a", body, 2))
    accepted(of_x(tmp_path / "b", body, 2, deterministic=False))
    # Shapes are checked all the same.
    assert "batch_axis" in refusal(
        of_x(tmp_path / "c", "return torch.rand_like(x).t()", 2, deterministic=False)
    )


def test_a_coarse_model_is_served_where_the_model_says_so(tmp_path: Path) -> None:
    """Dynamic quantization scales by the largest value in the batch."""
    body = "scale = x.abs().max() / 20 + 1e-9; return (x / scale).round() * scale"
    assert "tolerance" in refusal(of_x(tmp_path / "a", body, 2))
    accepted(of_x(tmp_path / "b", body, 2, tolerance=0.1))


def test_a_model_that_takes_one_row_at_a_time_is_not_asked_for_more(tmp_path: Path) -> None:
    accepted(of_x(tmp_path, "assert len(x) == 1; return x - x.mean(0) + 1", 2, batching={"max_rows": 1}))


def test_a_slow_model_is_checked_in_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("serving.self_check._SECONDS", 0.5)
    accepted(of_x(tmp_path, "import time; time.sleep(0.2); return x", 2, batching={"max_rows": 2}))
    assert "cut short" in caplog.text
