"""`model.yaml`: everything a team says about one model.

The sections `name`, `description`, `signature`, `access`, `resources`, `scan`, `promotion` and `drift` are
checked here. The section `serving` belongs to the model server, which checks it itself
(`python -m serving check FOLDER`); here it is only carried along.
"""

from __future__ import annotations

from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from flows.domain.drift.policy import DriftPolicy
from flows.domain.errors import SpecInvalid
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.release import MODEL_NAME
from flows.domain.signature import MOST_VALUES, Section, Signature


class Resources(Section):
    """What one server of a release asks for, and how many there are."""

    pool: Literal["cpu", "gpu"] = "cpu"
    cpu: str = "1"
    memory: str = "1Gi"
    gpu: int = Field(default=0, ge=0, le=8)
    replicas: int = Field(default=1, ge=1, le=1000)
    max_replicas: int = Field(default=4, ge=1, le=1000)
    autoscaling: Literal["none", "hpa", "keda"] = "hpa"
    scale_to_zero: bool = False
    start_seconds: float = Field(default=120, gt=0)
    """How long a server may take to become ready before its release counts as broken."""
    drain_seconds: float = Field(default=30, ge=0)


class ScanPolicy(Section):
    """Which findings in the image stop a promotion before anything is deployed."""

    mode: Literal["require", "record"] = "require"
    """`require`: no vulnerability database, no promotion. `record`: say so in the report and go on."""
    severity: tuple[Literal["LOW", "MEDIUM", "HIGH", "CRITICAL"], ...] = ("HIGH", "CRITICAL")
    ignore_unfixed: bool = True
    allow: tuple[str, ...] = ()
    """Finding ids (`CVE-…`, `AVD-…`) accepted by the model's owners."""


class Access(Section):
    """Who may ask, and how often."""

    per_second: int = Field(default=0, ge=0)
    """Requests a second and client, over all servers of a release; 0 is no limit. Clients are told apart by
    the address that the gateway has seen."""


class ModelSpec(Section):
    name: str
    description: str = ""
    signature: Signature
    serving: dict[str, Any] = Field(default_factory=dict)
    access: Access = Access()
    resources: Resources = Resources()
    scan: ScanPolicy = ScanPolicy()
    promotion: PromotionPolicy = PromotionPolicy()
    drift: DriftPolicy = DriftPolicy()

    @field_validator("name")
    @classmethod
    def _name_is_a_dns_label(cls, name: str) -> str:
        if not MODEL_NAME.fullmatch(name):
            raise ValueError("must be lower-case letters, digits and dashes, 40 characters at most")
        return name


MOST_NODES = 100_000
"""Of a model.yaml, each key and each value."""


class BoundedLoader(yaml.SafeLoader):
    """Aliases count as copies: hundreds of bytes of them can stand for more than is checked in a life."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _copies(node, {}) > MOST_NODES:
            problem = f"its aliases stand for more than {MOST_NODES} values"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return node


def _copies(node: yaml.Node, known: dict[int, int]) -> int:
    """Values that `node` stands for, with every alias written out."""
    if id(node) not in known:
        known[id(node)] = MOST_NODES + 1  # until it is counted: what holds itself has no end
        parts: list[Any] = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        known[id(node)] = 1 + sum(_copies(part, known) for part in parts)
    return known[id(node)]


def parse_spec(text: str, source: str) -> ModelSpec:
    """Parse the text of a `model.yaml`; `source` is the file's name for messages.

    Raises SpecInvalid with one line a problem: file, key, what is wrong, what is allowed.
    """
    try:
        content = yaml.load(text, BoundedLoader)
    except yaml.YAMLError as error:
        raise SpecInvalid(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise SpecInvalid(f"{source}: nested too deeply") from None
    if not isinstance(content, dict):
        raise SpecInvalid(f"{source}: expected keys such as 'name' and 'signature' at the top level")
    try:
        spec = ModelSpec.model_validate(content)
    except ValidationError as error:
        raise SpecInvalid("; ".join(f"{source}: {problem}" for problem in _problems(error))) from error
    problems = _segment_problems(spec)
    if problems:
        raise SpecInvalid("; ".join(f"{source}: promotion.segments: {problem}" for problem in problems))
    return spec


def _segment_problems(spec: ModelSpec) -> list[str]:
    """What keeps the servers from counting by the columns that the policy names."""
    inputs = {column.name: column for column in spec.signature.inputs}
    problems = []
    for name in spec.promotion.segments:
        column = inputs.get(name)
        if column is None:
            problems.append(f"{name} is no input; there are {', '.join(inputs)}")
        elif column.personal is not None:
            problems.append(f"{name} is personal: its values must not stand in metrics")
        elif not column.values:
            problems.append(
                f"the signature does not say which values {name} has: give it categories (a string) or a "
                "minimum and a maximum (an integer)"
            )
        elif len(column.values) > MOST_VALUES:
            problems.append(
                f"{name} has more than {MOST_VALUES} values: each shares alpha, so that none would be found; "
                "name the column of a coarser grouping"
            )
    return problems


def _problems(error: ValidationError) -> list[str]:
    problems = []
    for detail in error.errors():
        key = ".".join(str(part) for part in detail["loc"]) or "(top level)"
        if detail["type"] == "extra_forbidden":
            problems.append(f"{key}: unknown key; allowed here: {', '.join(_siblings(detail['loc']))}")
        else:
            message = detail["msg"].removeprefix("Value error, ")
            problems.append(f"{key}: {message} (found {detail['input']!r})")
    return problems


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    """The keys that the schema allows beside the unknown one."""
    section: type[BaseModel] = ModelSpec
    for part in location[:-1]:
        if isinstance(part, str) and part in section.model_fields:
            annotation = section.model_fields[part].annotation
            candidates = [annotation, *getattr(annotation, "__args__", ())]
            section = next(
                (c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), section
            )
    return sorted(section.model_fields)
