"""The variables that a server reads, as a table: for `python -m serving settings`.

The explanations are the docstrings beside the fields. They are read from the source, and only here: pydantic
could collect them, at every start of a server.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap

from pydantic_core import PydanticUndefined

from serving import settings
from serving.settings import Settings


def settings_table(width: int = 100) -> str:
    """One paragraph a variable: its name, its default, what it does."""
    prefix = Settings.model_config["env_prefix"]
    explanations = _explanations()
    paragraphs = []
    for name, field in Settings.model_fields.items():
        default = "required" if field.default is PydanticUndefined else f"default {_plain(field.default)}"
        text = f"{explanations[name]} ({default})" if name in explanations else f"({default})"
        lines = textwrap.fill(text, width, initial_indent="    ", subsequent_indent="    ")
        paragraphs.append(f"{prefix}{name.upper()}\n{lines}")
    return "\n".join(paragraphs)


def _plain(value: object) -> str:
    if value is None or value == "":
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _explanations() -> dict[str, str]:
    """By field, the string that follows it in the class."""
    tree = ast.parse(inspect.getsource(settings))
    [body] = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Settings"]
    found = {}
    for field, after in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            found[field.target.id] = " ".join(str(after.value.value).split())
    return found
