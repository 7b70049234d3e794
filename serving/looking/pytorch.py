"""PyTorch: an exported program tells all; TorchScript and weights tell what their first layer takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from serving.arrays import Array
from serving.errors import StartupError
from serving.looking.found import IMAGE, Asked, Found, Size, TensorInput, answered, column
from serving.runtimes.names import argument_names
from serving.runtimes.pytorch import detect_format, load_module, read_program, read_state
from serving.spec import RuntimeSpec

GIVE = "say what it takes with --input NAME:TYPE:SHAPE, once for each in its order"
DTYPES = {"number": "float32", "integer": "int64", "boolean": "bool"}


def look_pytorch(path: Path, asked: Asked) -> Found:
    form = detect_format(path)
    runtime: dict[str, Any] = {"kind": "pytorch", "file": path.name}
    if asked.trust_pickle:
        runtime["trust_pickle"] = True
    what = {"pt2": "an exported program", "torchscript": "TorchScript"}.get(form, f"weights ({form})")
    found = Found(what, runtime, [], [])
    spec = RuntimeSpec.model_validate(runtime)
    if form == "pt2":
        inputs = _exported(path, asked)
        module = load_module(spec, path.parent)
        return answered(path, inputs, lambda arrays: _called(module, arrays), found)
    if form in ("state_dict", "safetensors") and not (path.parent / spec.handler).is_file():
        found.handler = _draft(path, read_state(path, form, trust_pickle=asked.trust_pickle))
        return found
    module = load_module(spec, path.parent)
    found.files = [spec.handler] if form in ("state_dict", "safetensors") else []
    if asked.inputs:
        inputs = [TensorInput(one.name, DTYPES[one.type], [None, *one.shape]) for one in asked.inputs]
        return answered(path, inputs, lambda arrays: _called(module, arrays), found)
    names = argument_names(module) or ["x"]
    if len(names) != 1:
        raise StartupError(f"{path}: takes {', '.join(names)}, and {what} does not tell their shapes; {GIVE}")
    for dtype, sizes, why in _candidates(module):
        try:
            one = TensorInput(names[0], dtype, [None, *sizes])
            tried = answered(
                path,
                [one],
                lambda arrays: _called(module, arrays),
                Found(what, runtime, [], [], files=found.files),
            )
        except StartupError:
            continue
        shown = column(names[0], dtype, [size for size in sizes if isinstance(size, int)])
        tried.guessed.append(f"{names[0]}: {shown['type']} {shown.get('shape', '')}, read off {why}")
        return tried
    raise StartupError(f"{path}: {what} does not tell the shape of its input; {GIVE}")


def _exported(path: Path, asked: Asked) -> list[TensorInput]:
    program = read_program(path, trust_pickle=asked.trust_pickle)
    if program.example_inputs is not None and program.example_inputs[1]:
        raise StartupError(f"{path}: takes arguments by name; export it with positional ones")
    inputs = []
    names = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op != "placeholder" or node.name not in names:
            continue
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor):
            raise StartupError(
                f"{path}: its input {node.name} is a {type(value).__name__}; only tensors can be served"
            )
        sizes: list[Size] = [size if isinstance(size, int) else str(size) for size in value.shape]
        inputs.append(TensorInput(str(node.name), _numpy(value.dtype), sizes))
    return inputs


def _numpy(dtype: torch.dtype) -> Any:
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    return torch.empty(0, dtype=wide).numpy().dtype


def _candidates(module: Any) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Inputs that the first layer with weights would take: dtype, a row's sizes, and where that stands."""
    for name, layer in module.named_modules():
        weights = [one for one in layer.parameters(recurse=False) if one.ndim >= 1]
        if not weights:
            continue
        kind = str(getattr(layer, "original_name", type(layer).__name__))
        shape, why = tuple(weights[0].shape), f"its first layer {name} ({kind})".replace("  ", " ")
        if kind.startswith("Embedding"):
            yield "int64", (16,), why
        elif kind.startswith("Conv") and len(shape) > 2:
            for size in IMAGE:
                yield "float32", (shape[1], *[size] * (len(shape) - 2)), why
        elif len(shape) == 2:
            yield "float32", (shape[1],), why
            yield "float32", (16, shape[1]), why
        else:
            yield "float32", (shape[0],), why
            for size in IMAGE:
                yield "float32", (shape[0], size, size), why
        return


def _draft(path: Path, state: dict[str, Any]) -> str:
    if not all(isinstance(one, torch.Tensor) for one in state.values()):
        raise StartupError(
            f"{path}: holds more than weights ({', '.join(map(str, list(state)[:5]))}); save "
            "module.state_dict() "
            "alone, or torch.export.save(torch.export.export(module, …))"
        )
    table = "\n".join(f"    {name}  {tuple(one.shape)}  {one.dtype}" for name, one in state.items())
    return DRAFT.format(file=path.name, table=table)


DRAFT = '''"""Builds the module whose weights are in {file}.

The file holds weights with names and sizes, and not what is computed with them:

{table}
"""

import torch


def build() -> torch.nn.Module:
    """The module, with any weights: those of the file are put into it, and every name has to fit."""
    # For example: return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    raise NotImplementedError("complete build() in handler.py")
'''


def _called(module: Any, arrays: Sequence[Array]) -> dict[str, Any]:
    """The module's answers by name; without names `prediction`, or `output_0` and so on."""
    with torch.inference_mode():
        answer = module(*[torch.from_numpy(array) for array in arrays])
    if hasattr(answer, "_asdict"):
        answer = answer._asdict()
    if isinstance(answer, torch.Tensor):
        answer = {"prediction": answer}
    if not isinstance(answer, dict):
        flat: list[Any] = []
        for one in answer:
            flat += one if isinstance(one, tuple | list) else [one]
        answer = (
            {f"output_{place}": one for place, one in enumerate(flat)}
            if len(flat) > 1
            else {"prediction": flat[0]}
        )
    return {
        name: (one.float() if one.dtype == torch.bfloat16 else one).numpy()
        if isinstance(one, torch.Tensor)
        else one
        for name, one in answer.items()
    }
