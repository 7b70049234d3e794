"""Asks every panel's question of a real Prometheus and a real registry, and names the ones without an answer.

    python monitoring/panels.py http://127.0.0.1:9090 [postgresql://...]

A dashboard rots silently: a series is renamed and a panel stays empty until the night somebody needs it. So
this asks as Grafana does, for a stretch of time that ends now, in which there was traffic. Panels of series
that only a cluster has (dashboards tagged `cluster`) and panels of logs are not asked; `skipped()` lists
them, and the program prints how many there are.
"""

from __future__ import annotations

import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"
_TIMEOUT_SECONDS = 30
_LOOK_BACK_SECONDS, _STEP_SECONDS = 900, 15


@dataclass(frozen=True)
class Query:
    """One target of one panel, as it stands in the dashboard."""

    dashboard: str
    panel: str
    source: str
    """`prometheus`, `loki` or `grafana-postgresql-datasource`."""
    text: str
    cluster_only: bool = False

    @property
    def name(self) -> str:
        return f"{self.dashboard}: {self.panel}"


def queries(folder: Path = FOLDER) -> list[Query]:
    """Every query of every dashboard in `folder`, annotations and variables included."""
    found = []
    for path in sorted(folder.glob("*.json")):
        found += list(_queries(path.name, json.loads(path.read_text(encoding="utf-8"))))
    return found


def _queries(name: str, dashboard: dict[str, Any]) -> Iterator[Query]:
    only = "cluster" in dashboard["tags"]
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            text = target.get("expr") or target["rawSql"]
            yield Query(name, panel["title"], target["datasource"]["type"], text, only)
    for annotation in dashboard["annotations"]["list"]:
        target = annotation["target"]
        yield Query(
            name, f"annotation {annotation['name']}", annotation["datasource"]["type"], target["rawSql"]
        )
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            selector = re.fullmatch(r"label_values\((.+), *\w+\)", variable["definition"])
            if selector is None:
                raise ValueError(f"{name}: variable {variable['name']}: expected label_values(series, label)")
            yield Query(name, f"variable {variable['name']}", "prometheus", selector[1], only)


def skipped(folder: Path = FOLDER) -> list[Query]:
    """Queries that a machine without a cluster cannot answer."""
    return [query for query in queries(folder) if query.cluster_only or query.source == "loki"]


def filled_in(query: Query, model: str) -> str:
    """The query with Grafana's variables and macros replaced; in PromQL `model` is a regular expression."""
    text = query.text
    if query.source == "prometheus":
        for variable, value in (("$__rate_interval", "1m"), ("$__range", "1h"), ("$model", model)):
            text = text.replace(variable, value)
        return text
    text = re.sub(r"\$__timeFilter\(([\w.]+)\)", r"\1 > now() - interval '1 day'", text)
    return text.replace("${model:regex}", model).replace("$model", model)


def empty_panels(prometheus: str, registry: str | None = None, folder: Path = FOLDER) -> list[str]:
    """One line a query that fails or answers with nothing; an empty list when every panel shows something.

    `prometheus` is the base URL of its HTTP API. `registry` is a PostgreSQL URL; without one the panels of
    the registry are not asked. Variables that take one model get the first one that Prometheus knows.
    Raises OSError when Prometheus does not answer at all.
    """
    model = _first_model(prometheus)
    problems = []
    for query in queries(folder):
        if query.cluster_only or query.source == "loki":
            continue
        if query.source == "prometheus":
            every = 'model="$model"' not in query.text
            problem = _ask_prometheus(prometheus, filled_in(query, ".*" if every else model))
        elif registry is not None:
            problem = _ask_registry(registry, filled_in(query, model))
        else:
            continue
        if problem:
            problems.append(f"{query.name}: {problem}")
    return problems


def _first_model(prometheus: str) -> str:
    models = [
        series["metric"].get("model", "")
        for series in _series(prometheus, "group by (model) (modelserve_release_weight)")
    ]
    return min(models, default="none")


def _series(prometheus: str, expression: str) -> list[dict[str, Any]]:
    now = time.time()
    stretch = {"start": f"{now - _LOOK_BACK_SECONDS:.3f}", "end": f"{now:.3f}", "step": str(_STEP_SECONDS)}
    url = f"{prometheus}/api/v1/query_range?{urllib.parse.urlencode({'query': expression, **stretch})}"
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:
        result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return result


def _ask_prometheus(prometheus: str, expression: str) -> str:
    try:
        series = _series(prometheus, expression)
    except urllib.error.HTTPError as error:
        return f"{json.load(error).get('error', error)} in {expression}"
    if not series:
        return f"no series for {expression}"
    if all(value == "NaN" for one in series for _, value in one["values"]):
        return f"only NaN for {expression}"
    return ""


def _ask_registry(url: str, statement: str) -> str:
    import psycopg2

    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return "" if cursor.fetchone() else f"no row for {statement}"
    except psycopg2.Error as error:
        return f"{' '.join(str(error).split())} in {statement}"
    finally:
        connection.close()


def main(arguments: list[str]) -> int:
    if not 1 <= len(arguments) <= 2:
        print("usage: python monitoring/panels.py PROMETHEUS-URL [POSTGRESQL-URL]", file=sys.stderr)
        return 2
    try:
        problems = empty_panels(*arguments)
    except OSError as error:
        print(f"Prometheus at {arguments[0]} does not answer: {error}", file=sys.stderr)
        return 1
    for problem in problems:
        print(problem)
    asked = [query for query in queries() if query not in set(skipped())]
    if len(arguments) == 1:
        asked = [query for query in asked if query.source == "prometheus"]
    left_out = "cluster, logs" if len(arguments) == 2 else "cluster, logs, registry"
    print(
        f"{len(asked) - len(problems)} of {len(asked)} queries have an answer; "
        f"{len(queries()) - len(asked)} were not asked ({left_out})"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
