"""Rewrites a copy of a Terraform state so that `terraform validate` and `terraform test` need no registry.

Every module and every resource becomes a local module that takes the same arguments, of any type, and has the
outputs that are read from it. What is left is what is written here: expressions, references, conditions of
variables, and the tests' assertions. Whether the real modules know an argument is not checked; that takes the
registry. The text must be as `terraform fmt` leaves it.
"""

from __future__ import annotations

import re
from pathlib import Path

BLOCK = re.compile(
    r'^(module|resource|ephemeral) "(\w+)"(?: "(\w+)")? \{\n(.*?)^\}\n', re.DOTALL | re.MULTILINE
)
NESTED = re.compile(r"^  (\w+) \{\n(.*?)^  \}\n", re.DOTALL | re.MULTILINE)
LEFT_OUT = re.compile(r'^  (?:lifecycle|dynamic "\w+") \{\n.*?^  \}\n', re.DOTALL | re.MULTILINE)
META = {"source", "version", "for_each", "count", "depends_on", "providers"}
EVERY_RESOURCE_HAS = ("arn", "id", "result")


def make(state: Path) -> None:
    """Rewrite the files of the copy `state` in place."""
    files = [*sorted(state.glob("*.tf")), *sorted(state.glob("tests/*.tftest.hcl"))]
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    everything = "\n".join(texts.values())
    addresses: dict[str, str] = {}
    for path, text in texts.items():
        if path.suffix == ".tf":
            texts[path] = BLOCK.sub(lambda found: _replaced(found, state, everything, addresses), text)
    for path, text in texts.items():
        path.write_text(_without_providers(_renamed(text, addresses)), encoding="utf-8")


def _replaced(found: re.Match[str], state: Path, everything: str, addresses: dict[str, str]) -> str:
    kind, first, second, body = found.groups()
    if kind == "module":
        name, address, outputs = first, f"module.{first}", _overridden(first, everything)
    else:
        prefix = "ephemeral." if kind == "ephemeral" else ""
        name, address, outputs = f"{first}__{second}", f"{prefix}{first}.{second}", set(EVERY_RESOURCE_HAS)
        if prefix:
            name = f"ephemeral__{name}"
        addresses[address] = f"module.{name}"
    body = NESTED.sub(r"  \1 = [{\n\2  }]\n", LEFT_OUT.sub("", body))
    is_module = kind == "module"
    unseen = META if is_module else META - {"version"}
    given = [
        argument for argument in re.findall(r"^  (\w+) +=", body, re.MULTILINE) if argument not in unseen
    ]
    outputs |= set(re.findall(rf"{re.escape(address)}(?:\[[^\]]*\])?\.(\w+)", everything))
    _write(state / "standins" / name, address, given, outputs, resource=not is_module)
    if is_module:
        body = re.sub(r'^  (?:source|version) += ".*"\n', "", body, flags=re.MULTILINE)
    # Of a module call, `version` is Terraform's word.
    body = re.sub(r"^  version( +=)", r"  version_\1", body, flags=re.MULTILINE)
    return f'module "{name}" {{\n  source = "./standins/{name}"\n{body}}}\n'


def _overridden(module: str, everything: str) -> set[str]:
    """The outputs that the tests give a module: some are read in loops, where no address shows them."""
    found = re.search(
        rf"override_module \{{\n  target += module\.{module}\n(.*?)^\}}", everything, re.DOTALL | re.MULTILINE
    )
    return set(re.findall(r"(?:^    |\{ )(\w+) +=", found[1], re.MULTILINE)) if found else set()


def _write(folder: Path, address: str, given: list[str], read: set[str], *, resource: bool) -> None:
    folder.mkdir(parents=True)
    lines = []
    values = {name: f'"{address}.{name}"' for name in read}
    for argument in given:
        variable = "version_" if argument == "version" else argument
        lines.append(f'variable "{variable}" {{\n  type = any\n}}\n')
        if resource:
            values[argument] = f"var.{variable}"
    lines += [f'output "{name}" {{\n  value = {value}\n}}\n' for name, value in sorted(values.items())]
    (folder / "main.tf").write_text("\n".join(lines), encoding="utf-8")


def _renamed(text: str, addresses: dict[str, str]) -> str:
    for address, module in sorted(addresses.items(), key=lambda pair: -len(pair[0])):
        text = re.sub(rf"(?<![\w.]){re.escape(address)}\b", module, text)
    return text


def _without_providers(text: str) -> str:
    text = re.sub(r"^mock_provider .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r'^provider "\w+" \{\n.*?^\}\n', "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(
        r'^  (?:required_providers|backend "\w+") \{\n.*?^  \}\n', "", text, flags=re.DOTALL | re.MULTILINE
    )
