"""Which tensor of a model's file is which column: by name wherever the file knows names.

The order of a file is its exporter's, not the signature's; two inputs that were fed in the wrong order give
answers that nobody can tell from right ones. Only where there is one of each no name is needed.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serving.arrays import Array
from serving.errors import StartupError, WrongForm


def input_names(path: Path, wanted: Sequence[str], takes: Sequence[str]) -> list[str]:
    """The file's names of the wanted inputs, in their order. StartupError when they are not the same ones."""
    if set(takes) == set(wanted):
        return list(wanted)
    if len(takes) == len(wanted) == 1:
        return list(takes)
    raise StartupError(
        f"{path}: takes {', '.join(takes)}; the signature has {', '.join(wanted)}. "
        "Name the inputs in model.yaml as the file does"
    )


def output_names(path: Path, wanted: Sequence[str], gives: Sequence[str]) -> list[str]:
    """As input_names; the file may give more than is wanted."""
    if set(wanted) <= set(gives):
        return list(wanted)
    if len(gives) == len(wanted) == 1:
        return list(gives)
    raise StartupError(
        f"{path}: gives {', '.join(gives)}; the signature wants {', '.join(wanted)}. "
        "Name the outputs in model.yaml as the file does"
    )


def argument_order(path: Path, wanted: Sequence[str], takes: Sequence[str] | None) -> list[int]:
    """For each argument of a function, which of the wanted inputs it gets.

    By name where all names agree. Names that share nothing say nothing (a traced module calls its first input
    `x`, whatever it is): then the order counts. StartupError when a name that both have is elsewhere.
    """
    order = list(range(len(wanted)))
    if takes is None or len(wanted) < 2:
        return order
    if set(takes) == set(wanted):
        return [list(wanted).index(name) for name in takes]
    for place, name in enumerate(takes):
        if name in wanted and list(wanted).index(name) != place:
            raise StartupError(
                f"{path}: takes {', '.join(takes)}; the signature has {', '.join(wanted)}. "
                "Name the inputs in model.yaml as the model does, or put them into its order"
            )
    return order


def in_order(giver: str, wanted: Sequence[str], answers: Mapping[str, Array]) -> list[Array]:
    """The wanted ones of a run's answers. WrongForm, about the `giver`, when one is missing."""
    if missing := [name for name in wanted if name not in answers]:
        raise WrongForm(f"{giver} gives {', '.join(answers)}, and no {', '.join(missing)}")
    return [answers[name] for name in wanted]


def argument_names(module: Any) -> list[str] | None:
    """Names of the tensors that an eager or TorchScript module takes; None where nobody can tell."""
    try:
        schema = getattr(getattr(module, "forward", None), "schema", None)
        if schema is not None:
            return [argument.name for argument in schema.arguments if argument.name != "self"]
        parameters = inspect.signature(module.forward).parameters.values()
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return None
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters]
