"""Builders of Grafana's JSON: what every panel and every dashboard of this project has in common."""

from __future__ import annotations

from typing import Any

CLUSTER_TAG = "cluster"
"""Dashboards of series that only a cluster has (nodes, GPUs, AWS) carry this tag."""

PROMETHEUS, LOGS, REGISTRY = "prometheus", "loki", "grafana-postgresql-datasource"
_SOURCE = {PROMETHEUS: "$metrics", LOGS: "$logs", REGISTRY: "$registry"}

Panel = dict[str, Any]


def _datasource(kind: str) -> dict[str, str]:
    return {"type": kind, "uid": _SOURCE[kind]}


def panel(
    title: str,
    *queries: tuple[str, str],
    kind: str = "timeseries",
    unit: str = "short",
    width: int = 8,
    height: int = 8,
    source: str = PROMETHEUS,
    text: str = "",
    stack: bool = False,
    minimum: float | None = 0,
    maximum: float | None = None,
    thresholds: tuple[tuple[float, str], ...] = (),
) -> Panel:
    """One panel. Each query is (query, legend); `thresholds` are (from, colour) above green."""
    targets = []
    for index, (query, legend) in enumerate(queries):
        target: dict[str, Any] = {"refId": chr(ord("A") + index), "datasource": _datasource(source)}
        if source == REGISTRY:
            target |= {"rawSql": query, "rawQuery": True, "editorMode": "code"}
            target |= {"format": "time_series" if kind == "timeseries" else "table"}
        else:
            target |= {"expr": query}
        if source == PROMETHEUS:
            instant = kind in ("stat", "table")
            target |= {"legendFormat": legend or "__auto", "instant": instant, "range": not instant}
            # Only the servers' own histograms can carry trace ids; recorded series have none.
            target |= {"editorMode": "code", "exemplar": "duration_seconds_bucket" in query}
            if kind == "table":
                target |= {"format": "table"}
        targets.append(target)
    defaults: dict[str, Any] = {"unit": unit}
    if minimum is not None:
        defaults["min"] = minimum
    if maximum is not None:
        defaults["max"] = maximum
    if thresholds:
        steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
        steps += [{"color": colour, "value": value} for value, colour in thresholds]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    if kind == "timeseries":
        defaults["custom"] = {
            "fillOpacity": 40 if stack else 8,
            "showPoints": "auto",
            "stacking": {"mode": "normal" if stack else "none"},
            "spanNulls": False,
        }
    options: dict[str, Any] = {}
    if kind == "timeseries":
        options = {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    elif kind == "stat":
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "textMode": "auto"}
    elif kind == "logs":
        options = {
            "showTime": True,
            "wrapLogMessage": True,
            "enableLogDetails": True,
            "sortOrder": "Descending",
        }
    return {
        "type": kind,
        "title": title,
        "description": text,
        "datasource": _datasource(source),
        "gridPos": {"w": width, "h": height},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": targets,
    }


def row(title: str) -> Panel:
    return {"type": "row", "title": title, "collapsed": False, "gridPos": {"w": 24, "h": 1}, "panels": []}


def _place(panels: list[Panel]) -> list[Panel]:
    """Give each panel an id and a place: from left to right, a new line when the next does not fit."""
    x = y = line = 0
    placed = []
    for number, panel in enumerate(panels, start=1):
        size = panel["gridPos"]
        if x + size["w"] > 24 or panel["type"] == "row":
            x, y, line = 0, y + line, 0
        placed.append({"id": number, **panel, "gridPos": {**size, "x": x, "y": y}})
        x, line = x + size["w"], max(line, size["h"])
    return placed


def _source_variable(name: str, kind: str, label: str) -> dict[str, Any]:
    return {"name": name, "type": "datasource", "query": kind, "label": label, "hide": 0, "current": {}}


def label_variable(name: str, query: str, *, multi: bool = True) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": _datasource(PROMETHEUS),
        "query": {"query": query, "refId": "variable"},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": multi,
        "includeAll": multi,
        "allValue": ".*" if multi else None,
        "current": {"text": "All", "value": "$__all"} if multi else {},
    }


MODELS = label_variable("model", "label_values(modelserve_release_weight, model)")
ONE_MODEL = label_variable("model", "label_values(modelserve_release_weight, model)", multi=False)
REQUEST = {
    "name": "request_id",
    "type": "textbox",
    "label": "Request id",
    "query": "",
    "current": {"value": ""},
}


def dashboard(
    uid: str,
    title: str,
    panels: list[Panel],
    variables: list[dict[str, Any]],
    tags: tuple[str, ...] = (),
    since: str = "now-1h",
) -> dict[str, Any]:
    sources = {target["datasource"]["type"] for panel in panels for target in panel.get("targets", ())}
    listed = [_source_variable("metrics", PROMETHEUS, "Metrics")]
    if LOGS in sources:
        listed.append(_source_variable("logs", LOGS, "Logs"))
    listed.append(_source_variable("registry", REGISTRY, "Registry"))
    return {
        "uid": uid,
        "title": f"ModelServeAI / {title}",
        "tags": ["modelserveai", *tags],
        "schemaVersion": 41,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": since, "to": "now"},
        "timezone": "browser",
        "templating": {"list": [*listed, *variables]},
        "annotations": {"list": [_annotations()]} if variables and CLUSTER_TAG not in tags else {"list": []},
        "links": [
            {"type": "dashboards", "title": "ModelServeAI", "tags": ["modelserveai"], "asDropdown": True}
        ],
        "panels": _place(panels),
    }


EVENTS = (
    "SELECT at AS time, kind || coalesce(' v' || version, '') AS title, detail::text AS text, kind AS tags "
    "FROM events WHERE $__timeFilter(at) AND model ~ '^(${model:regex})$' ORDER BY at"
)


def _annotations() -> dict[str, Any]:
    """What the registry recorded (steps, verdicts, rollbacks), as vertical lines on every panel."""
    return {
        "name": "Releases",
        "datasource": _datasource(REGISTRY),
        "enable": True,
        "iconColor": "purple",
        "target": {"refId": "events", "rawSql": EVENTS, "rawQuery": True, "format": "table"},
    }
