"""What is wrong with a model's folder, before anybody packs it."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from serving.errors import Problem, SpecProblem
from serving.inference.codec import make_codec
from serving.spec import ModelFile, read_model_file


def check_folder(folder: Path) -> list[str]:
    """One line a problem; empty when the folder is fine. Runs no code of the model."""
    try:
        model = read_model_file(folder / "model.yaml")
    except SpecProblem as problem:
        return problem.problems
    return [*_handler_problems(model, folder), *_sample_problems(model, folder / "samples.jsonl")]


def _handler_problems(model: ModelFile, folder: Path) -> list[str]:
    runtime = model.serving.runtime
    path = folder / runtime.handler
    wanted: tuple[str, ...] = ()
    if runtime.kind == "handler":
        wanted = ("load", "predict")
    elif runtime.format in ("state_dict", "safetensors") or str(runtime.file).endswith(".safetensors"):
        wanted = ("build",)
    if not wanted:
        return []
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except OSError:
        return [f"{path}: not there; add it with the function {wanted[0]}()"]
    except (SyntaxError, UnicodeDecodeError) as error:
        return [f"{path}: not valid Python: {' '.join(str(error).split())}"]
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    defined |= {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return [f"{path}: no function {name}(); add it" for name in wanted if name not in defined]


def _sample_problems(model: ModelFile, path: Path) -> list[str]:
    if not path.is_file():
        return []
    codec = make_codec(model)
    problems = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            sample = json.loads(line)
            instances = sample["instances"]
        except (ValueError, KeyError, TypeError):
            problems.append(f"{place}: expected a JSON object with 'instances' and 'predictions' or 'status'")
            continue
        refused = int(sample.get("status", 200)) != 200
        if not refused and len(sample.get("predictions", [])) != len(instances):
            problems.append(f"{place}: as many predictions as instances are needed")
        try:
            codec.decode(json.dumps({"instances": instances}).encode())
        except Problem as problem:
            if not refused:
                where = f" at {problem.pointer}" if problem.pointer else ""
                problems.append(f"{place}: does not match the signature: {problem.detail}{where}")
    return problems
