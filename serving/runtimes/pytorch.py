"""PyTorch: exported programs (`.pt2`), TorchScript, and weights (a state dict, or
safetensors) with `build()` in handler.py.

Nothing is unpickled without `trust_pickle: true`: torch.export's reader falls back to pickle for weights
and constants, so it is run under torch's own switch that forbids this.
"""

from __future__ import annotations

import contextlib
import os
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from serving.arrays import Array
from serving.errors import StartupError, WrongForm
from serving.runtimes.devices import choose_device, cpu_quota
from serving.runtimes.layout import lay_out
from serving.runtimes.modules import import_handler
from serving.runtimes.names import argument_names, argument_order
from serving.spec import ModelFile, RuntimeSpec

_ONE_THREAD_BELOW_SECONDS = 0.003
_TUNING_RUNS = 3
_WORTH_IT = 0.75
_FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


class PyTorchRuntime:
    def __init__(self, model: ModelFile, folder: Path) -> None:
        spec = model.serving.runtime
        self._spec = spec
        self._device = choose_device(spec.device)
        self._threads = spec.threads or 1
        self._settled = threading.local()
        self._broken: str | None = None
        self._names = [column.name for column in model.signature.outputs]
        self._dtype = None if spec.dtype == "float32" else getattr(torch, spec.dtype)
        module = load_module(spec, folder, self._device)
        wanted = ["inputs"] if spec.inputs == "stack" else [column.name for column in model.signature.inputs]
        order = argument_order(folder / (spec.file or ""), wanted, argument_names(module))
        self._order = order if order != sorted(order) else None
        self._undo_layout: Callable[[], None] | None = None
        if self._device == "cpu" and isinstance(module, torch.nn.Module):
            self._undo_layout = lay_out(module)
        self._module = torch.compile(module, dynamic=True) if spec.compile else module
        self._plain = self._device == "cpu" and self._dtype is None

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        if self._undo_layout is not None:
            return self._run_first(self._undo_layout, inputs)
        # The number is kept by thread, and matrix products in a thread that has not said one take all CPUs.
        if getattr(self._settled, "threads", 0) != self._threads:
            torch.set_num_threads(self._threads)
            self._settled.threads = self._threads
        if self._order is not None:
            inputs = [inputs[place] for place in self._order]
        with torch.inference_mode():
            if self._plain:
                answer = self._module(*[_tensor(array) for array in inputs])
                if isinstance(answer, torch.Tensor):
                    return [_array(answer)]
                return [_array(tensor) for tensor in self._ordered(answer)]
            return self._run_converted(inputs)

    def _run_first(self, undo: Callable[[], None], inputs: Sequence[Array]) -> list[Array]:
        """Code that reads a layer's weight as contiguous memory fails on ours: then it gets its own back."""
        self._undo_layout = None
        try:
            return self.run(inputs)
        except Exception:
            undo()
            return self.run(inputs)

    def tune(self, largest_batch: Callable[[], float]) -> None:
        """More threads inside one call only where they are measured to pay: they take CPU from the event
        loop, and they spin while they wait for each other."""
        quota = cpu_quota()
        if self._spec.threads is not None or self._device != "cpu" or quota == 1:
            return
        single = min(largest_batch() for _ in range(_TUNING_RUNS))
        if single < _ONE_THREAD_BELOW_SECONDS:
            return
        self._threads = quota
        largest_batch()
        if min(largest_batch() for _ in range(_TUNING_RUNS)) > single * _WORTH_IT:
            self._threads = 1

    def device_memory(self) -> int | None:
        return int(torch.cuda.memory_allocated()) if self._device == "cuda" else None

    def broken(self) -> str | None:
        return self._broken

    def _run_converted(self, inputs: Sequence[Array]) -> list[Array]:
        try:
            answer = self._module(*[self._moved(_tensor(array)) for array in inputs])
            tensors = [answer] if isinstance(answer, torch.Tensor) else self._ordered(answer)
            return [_array(tensor.cpu()) for tensor in tensors]
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            raise MemoryError("the batch does not fit into the device's memory") from None
        except RuntimeError as error:
            # Errors of the context itself ("CUDA error: an illegal memory access …") never go away.
            if self._device == "cuda" and "CUDA error" in str(error):
                self._broken = str(error).splitlines()[0]
            raise

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._device == "cuda":
            tensor = tensor.pin_memory().to("cuda", non_blocking=True)
        if self._dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(self._dtype)
        return tensor

    def _ordered(self, answer: Any) -> list[torch.Tensor]:
        """By name where the answer has names, else in the order of the signature."""
        names = getattr(answer, "_fields", None)
        if names is not None and set(self._names) <= set(names):
            answer = answer._asdict()
        if isinstance(answer, dict):
            missing = [name for name in self._names if name not in answer]
            if missing and len(answer) == len(self._names) == 1:
                return list(answer.values())
            if missing:
                raise WrongForm(f"the model gives {', '.join(answer)}, and no {', '.join(missing)}")
            return [answer[name] for name in self._names]
        if not isinstance(answer, tuple | list):
            raise WrongForm(f"the model gives a {type(answer).__name__}, expected tensors")
        tensors: list[torch.Tensor] = []
        for tensor in answer:
            # A recurrent layer's states come as a tuple within the tuple.
            tensors += tensor if isinstance(tensor, tuple | list) else [tensor]
        for tensor in tensors:
            if not isinstance(tensor, torch.Tensor):
                raise WrongForm(
                    f"the model gives a {type(tensor).__name__} among its outputs, expected tensors"
                )
        return tensors


def load_module(spec: RuntimeSpec, folder: Path, device: str = "cpu") -> Any:
    """The module of a bundle's file on `device`, ready to be called with tensors. StartupError in one
    line."""
    assert spec.file is not None
    path = folder / spec.file
    if not path.is_file():
        raise StartupError(f"{path}: not there; name the model's file in serving.runtime.file")
    dtype = None if spec.dtype == "float32" else getattr(torch, spec.dtype)
    form = detect_format(path) if spec.format == "auto" else spec.format
    if form == "pt2":
        return _exported(path, spec.trust_pickle, device, dtype)
    if form == "torchscript":
        import warnings

        with warnings.catch_warnings():
            # The format is deprecated by its makers, and users still have files in it.
            warnings.simplefilter("ignore", DeprecationWarning)
            module: Any = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
        module.eval()
    else:
        module = _from_state(path, folder, spec, form)
    return module.to(device, dtype) if dtype is not None else module.to(device)


def read_program(path: Path, *, trust_pickle: bool) -> torch.export.ExportedProgram:
    """An exported program, without pickle unless its owner says so."""
    with contextlib.nullcontext() if trust_pickle else _without_pickle():
        return torch.export.load(path)


def _exported(path: Path, trust_pickle: bool, device: str, dtype: torch.dtype | None) -> Any:
    program = read_program(path, trust_pickle=trust_pickle)
    module = program.module()
    if device == "cuda":
        from torch.export.passes import move_to_device_pass

        module = move_to_device_pass(program, device).module()
    return module.to(dtype) if dtype is not None else module


def read_state(path: Path, form: str, *, trust_pickle: bool) -> dict[str, torch.Tensor]:
    """Weights by name, of a state dict or of safetensors."""
    if form == "safetensors":
        from safetensors.torch import load_file

        return dict(load_file(path))
    state: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    return state


def _from_state(path: Path, folder: Path, spec: RuntimeSpec, form: str) -> Any:
    build = getattr(import_handler(folder, spec.handler), "build", None)
    if not callable(build):
        raise StartupError(
            f"{folder / spec.handler}: no function build() that returns the module for {path.name}"
        )
    module = build()
    module.load_state_dict(read_state(path, form, trust_pickle=spec.trust_pickle))
    return module.eval()


def _tensor(array: Array) -> torch.Tensor:
    """Tensors share memory with their array, which must be aligned and writable for that."""
    return torch.from_numpy(array if array.flags.carray else array.copy())


def _array(tensor: torch.Tensor) -> Array:
    """A copy: the tensor may be a part of the model, which its next call changes while this answer is
    read."""
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    array: Array = tensor.numpy().copy()
    return array


def detect_format(path: Path) -> str:
    """Which of PyTorch's formats a file is, by its content: suffixes are used for all of them."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return "safetensors" if path.suffix == ".safetensors" else "state_dict"
    if any(name.endswith(("/archive_format", "serialized_exported_program.json")) for name in names) or any(
        "/models/" in f"/{name}" and name.endswith(".json") for name in names
    ):
        return "pt2"
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        return "torchscript"
    return "state_dict"


@contextlib.contextmanager
def _without_pickle() -> Iterator[None]:
    before = os.environ.get(_FORCE_WEIGHTS_ONLY)
    os.environ[_FORCE_WEIGHTS_ONLY] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FORCE_WEIGHTS_ONLY]
        else:
            os.environ[_FORCE_WEIGHTS_ONLY] = before
