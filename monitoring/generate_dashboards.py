"""Writes the Grafana dashboards: `python monitoring/generate_dashboards.py` (`--check` only compares).

Dashboards are text that nobody likes to review. Here a panel is one line with its query, and the JSON under
`monitoring/dashboards/`, which Grafana provisions, is made from it; a test holds that they agree.
Nothing here knows Envoy or Istio: panels read the normalised series, the servers' and the control plane's
own, the registry's tables, and the logs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from grafana import CLUSTER_TAG, LOGS, MODELS, ONE_MODEL, REGISTRY, REQUEST, dashboard, panel, row

FOLDER = Path(__file__).parent / "dashboards"
SHARE = "percentunit"
TRAFFIC = 'traffic:requests:count{model=~"$model"}'
RELEASE = "{{model}}-v{{version}}"


def _quantile(share: float, series: str, by: str = "model, version") -> str:
    buckets = f'sum by ({by}, le) (rate({series}{{model=~"$model"}}[$__rate_interval]))'
    return f"histogram_quantile({share}, {buckets})"


def _rate(series: str, by: str = "model, version", labels: str = "") -> str:
    return f'sum by ({by}) (rate({series}{{model=~"$model"{labels}}}[$__rate_interval]))'


def models() -> dict[str, Any]:
    requests = f"sum by (model, version) (rate({TRAFFIC}[$__rate_interval]))"
    faults = 'traffic:requests:count{model=~"$model",class="5"}'
    failures = f"(sum by (model, version) (rate({faults}[$__rate_interval])) or {requests} * 0)"
    every = f"sum(rate({TRAFFIC}[$__rate_interval]))"
    failed = f"sum(rate({faults}[$__rate_interval]))"
    buckets = 'sum by (le) (rate(traffic:latency:bucket{model=~"$model"}[$__rate_interval]))'
    # The gateway's lines know no model; the id alone finds the request.
    request_line = '{namespace=~"modelserve|istio-ingress|nginx-ingress"} | request_id = "$request_id"'
    faulty = '{namespace="modelserve", model=~"$model"} | json | status >= 500'
    panels = [
        panel("Requests", (every, ""), kind="stat", unit="reqps", width=6, height=4),
        panel(
            "Failed",
            (f"({failed} or {every} * 0) / {every}", ""),
            kind="stat",
            unit=SHARE,
            width=6,
            height=4,
            thresholds=((0.001, "orange"), (0.01, "red")),
        ),
        panel("p99", (f"histogram_quantile(0.99, {buckets})", ""), kind="stat", unit="s", width=6, height=4),
        panel(
            "Burn of the error budget, worst model",
            ("max(slo:unavailable:ratio1h / on (model) (1 - slo:availability:objective))", ""),
            kind="stat",
            width=6,
            height=4,
            text="1 uses the month's budget in a month; at 14.4 somebody is woken up.",
            thresholds=((1, "orange"), (6, "red")),
        ),
        row("Rate, errors, latency by version"),
        panel("Requests by version", (requests, RELEASE), unit="reqps", stack=True),
        panel("Errors by version", (f"{failures} / ({requests} > 0)", RELEASE), unit=SHARE),
        panel(
            "Latency by version",
            (_quantile(0.5, "traffic:latency:bucket"), f"{RELEASE} p50"),
            (_quantile(0.99, "traffic:latency:bucket"), f"{RELEASE} p99"),
            unit="s",
            text="At the gateway: what users see, the network to the server included.",
        ),
        panel(
            "Weights",
            ('max by (model, version) (modelserve_release_weight{model=~"$model"})', RELEASE),
            unit="percent",
            maximum=100,
            stack=True,
        ),
        panel(
            "Answers by class",
            (f"sum by (model, class) (rate({TRAFFIC}[$__rate_interval]))", "{{model}} {{class}}xx"),
            unit="reqps",
            stack=True,
        ),
        panel(
            "Slower than 250 ms",
            ('slo:slow:ratio5m{model=~"$model"}', "{{model}}"),
            unit=SHARE,
        ),
        row("Saturation"),
        panel(
            "Rows that wait or run",
            ('sum by (model, version) (modelserve_pending_rows{model=~"$model"})', RELEASE),
        ),
        panel(
            "Turned away",
            (
                f"{_rate('modelserve_rejected_total', 'model, version, reason')} "
                f"or {_rate('modelserve_requests_total')} * 0",
                f"{RELEASE} {{{{reason}}}}",
            ),
            unit="reqps",
            text="Requests refused or failed, by what was wrong. A line at zero: none.",
        ),
        panel(
            "Ready servers",
            ('sum by (model, version) (modelserve_ready{model=~"$model"})', RELEASE),
        ),
        row("Objectives"),
        panel(
            "Burn of the error budget",
            (
                'slo:unavailable:ratio1h{model=~"$model"} / on (model) (1 - slo:availability:objective)',
                "{{model}} 1 h",
            ),
            (
                'slo:unavailable:ratio6h{model=~"$model"} / on (model) (1 - slo:availability:objective)',
                "{{model}} 6 h",
            ),
            width=12,
        ),
        panel(
            "Burn of the latency budget",
            ('slo:slow:ratio1h{model=~"$model"} / on (model) (1 - slo:latency:objective)', "{{model}} 1 h"),
            ('slo:slow:ratio6h{model=~"$model"} / on (model) (1 - slo:latency:objective)', "{{model}} 6 h"),
            width=12,
        ),
        row("Logs"),
        panel(
            "Log lines of failed requests",
            (faulty, ""),
            kind="logs",
            source=LOGS,
            width=12,
        ),
        panel(
            "One request",
            (request_line, ""),
            kind="logs",
            source=LOGS,
            width=12,
            text="Paste the X-Request-Id of an answer into the field above.",
        ),
    ]
    return dashboard("modelserve-models", "Models", panels, [MODELS, REQUEST])


def promotion() -> dict[str, Any]:
    requests = f"sum by (version) (rate({TRAFFIC}[$__rate_interval]))"
    where = (
        "FROM windows w JOIN promotions p ON p.id = w.promotion "
        "WHERE p.model = '$model' AND $__timeFilter(w.stored_at)"
    )
    panels = [
        panel(
            "Weights: wanted",
            ('max by (version) (modelserve_release_weight{model="$model"})', "v{{version}}"),
            unit="percent",
            maximum=100,
            stack=True,
        ),
        panel(
            "Share: observed",
            (f"100 * {requests} / on () group_left () (sum({requests}) > 0)", "v{{version}}"),
            unit="percent",
            maximum=100,
            stack=True,
            text="What the gateway counted. It must follow the weights; if it does not, no step gets credit.",
        ),
        panel(
            "Requests",
            (requests, "v{{version}}"),
            unit="reqps",
        ),
        panel(
            "Failures, last minute",
            (
                'release:failures:ratio1m{model="$model"} or release:requests:increase1m{model="$model"} * 0',
                "v{{version}}",
            ),
            unit=SHARE,
        ),
        panel(
            "p99 latency",
            (_quantile(0.99, "traffic:latency:bucket", "version"), "v{{version}}"),
            unit="s",
        ),
        panel(
            "Answers that break the signature",
            (
                _rate("modelserve_rejected_total", "version", ', reason="invalid_output"')
                + f" or {_rate('modelserve_requests_total', 'version')} * 0",
                "v{{version}}",
            ),
            unit="reqps",
        ),
        row("Evidence and verdicts, from the registry"),
        panel(
            "Evidence against the canary",
            (
                "SELECT w.stored_at AS time, 'v' || p.version AS metric, "
                f"ln((w.verdict->>'evidence')::float8) AS value {where} ORDER BY 1",
                "",
            ),
            source=REGISTRY,
            width=12,
            minimum=None,
            text="ln E. At ln(1/alpha), which is 4.6 for one per cent, the canary is rejected.",
        ),
        panel(
            "Requests counted in each window",
            (
                "SELECT w.stored_at AS time, 'canary v' || p.version AS metric, "
                f"(w.content->'canary'->>'requests')::float8 AS value {where} ORDER BY 1",
                "",
            ),
            (
                "SELECT w.stored_at AS time, 'stable' AS metric, "
                f"(w.content->'stable'->>'requests')::float8 AS value {where} "
                "AND jsonb_typeof(w.content->'stable') = 'object' ORDER BY 1",
                "",
            ),
            source=REGISTRY,
            width=12,
        ),
        panel(
            "Verdicts",
            (
                "SELECT w.stored_at AS time, 'v' || p.version AS release, "
                "(w.content->>'weight')::int AS weight, "
                "w.verdict->>'kind' AS verdict, w.verdict->>'metric' AS gate, w.verdict->>'sentence' AS why, "
                "(w.verdict->>'canary_bad')::bigint AS bad, (w.verdict->>'canary_total')::bigint AS requests "
                f"{where} ORDER BY 1 DESC LIMIT 200",
                "",
            ),
            source=REGISTRY,
            kind="table",
            width=24,
        ),
        panel(
            "Promotions",
            (
                "SELECT started_at AS time, version, state, weight, reason, "
                "ended_at - started_at AS took, run "
                "FROM promotions WHERE model = '$model' ORDER BY started_at DESC LIMIT 50",
                "",
            ),
            source=REGISTRY,
            kind="table",
            width=24,
        ),
    ]
    return dashboard("modelserve-promotion", "One promotion", panels, [ONE_MODEL], since="now-30m")


def drift() -> dict[str, Any]:
    panels = [
        panel(
            "Columns over their threshold",
            (
                'count by (model) (max by (model, column) (modelserve_drift_score{model=~"$model"}) >= 1) or '
                'group by (model) (modelserve_drift_score{model=~"$model"}) * 0',
                "{{model}}",
            ),
            kind="stat",
            height=4,
            thresholds=((1, "orange"),),
        ),
        panel(
            "Since the last finished check",
            (
                'time() - max by (model) (modelserve_drift_last_success_timestamp_seconds{model=~"$model"})',
                "{{model}}",
            ),
            kind="stat",
            unit="s",
            height=4,
        ),
        panel(
            "Promotions frozen",
            ('max by (model) (modelserve_model_frozen{model=~"$model"})', "{{model}}"),
            kind="stat",
            height=4,
            thresholds=((1, "red"),),
        ),
        panel(
            "Drift by column",
            ('max by (model, column) (modelserve_drift_score{model=~"$model"})', "{{model}} {{column}}"),
            width=16,
            text="Distance to the reference over the column's own calibrated threshold: 1 is the threshold.",
        ),
        panel(
            "Worst columns now",
            ('topk(10, max by (model, column) (modelserve_drift_score{model=~"$model"}))', ""),
            kind="table",
        ),
        panel(
            "Answers by class or score",
            (
                f"{_rate('modelserve_outputs_total', 'model, version, bin')} "
                f"/ on (model, version) group_left () ({_rate('modelserve_outputs_total')} > 0)",
                f"{RELEASE} {{{{bin}}}}",
            ),
            unit=SHARE,
            stack=True,
            width=16,
        ),
        panel(
            "Samples",
            (_rate("modelserve_samples_sent_total", "model"), "{{model}} kept"),
            (_rate("modelserve_samples_dropped_total", "model"), "{{model}} dropped"),
            unit="cps",
        ),
        panel(
            "Checks",
            (
                "SELECT checked_at AS time, model, outcome FROM drift_checks "
                "WHERE $__timeFilter(checked_at) AND model ~ '^(${model:regex})$' ORDER BY 1 DESC LIMIT 100",
                "",
            ),
            source=REGISTRY,
            kind="table",
            width=24,
        ),
    ]
    return dashboard("modelserve-drift", "Drift", panels, [MODELS], since="now-7d")


def serving() -> dict[str, Any]:
    def mean(histogram: str) -> str:
        return f"{_rate(histogram + '_sum')} / ({_rate(histogram + '_count')} > 0)"

    hits = _rate("modelserve_cache_hits_total")
    compared = _rate("modelserve_shadow_compared_total")
    looked = f"({hits} + {_rate('modelserve_cache_misses_total')})"
    panels = [
        row("Batches and time"),
        panel(
            "Rows a batch",
            (mean("modelserve_batch_rows"), f"{RELEASE} mean"),
            (_quantile(0.99, "modelserve_batch_rows_bucket"), f"{RELEASE} p99"),
        ),
        panel(
            "Wait for the model",
            (_quantile(0.5, "modelserve_queue_duration_seconds_bucket"), f"{RELEASE} p50"),
            (_quantile(0.99, "modelserve_queue_duration_seconds_bucket"), f"{RELEASE} p99"),
            unit="s",
        ),
        panel(
            "One call of the model",
            (_quantile(0.5, "modelserve_inference_duration_seconds_bucket"), f"{RELEASE} p50"),
            (_quantile(0.99, "modelserve_inference_duration_seconds_bucket"), f"{RELEASE} p99"),
            unit="s",
        ),
        panel(
            "Time in the server",
            (_quantile(0.5, "modelserve_request_duration_seconds_bucket"), f"{RELEASE} p50"),
            (_quantile(0.99, "modelserve_request_duration_seconds_bucket"), f"{RELEASE} p99"),
            unit="s",
        ),
        panel(
            "Answers by route and code",
            (_rate("modelserve_requests_total", "route, code"), "{{route}} {{code}}"),
            unit="reqps",
            stack=True,
        ),
        panel(
            "In flight",
            ('sum by (model, version) (modelserve_in_flight_requests{model=~"$model"})', RELEASE),
        ),
        row("Cache"),
        panel(
            "Hit share",
            (f"{hits} / ({looked} > 0) or {looked} * 0", RELEASE),
            unit=SHARE,
            maximum=1,
            text="Zero while the model has no cache.",
        ),
        panel("Cache errors", (_rate("modelserve_cache_errors_total"), RELEASE), unit="cps"),
        panel("Worker restarts", (_rate("modelserve_worker_restarts_total"), RELEASE), unit="cps"),
        row("Shadow"),
        panel(
            "Copies",
            (_rate("modelserve_shadow_sent_total"), f"{RELEASE} sent"),
            (_rate("modelserve_shadow_dropped_total"), f"{RELEASE} dropped"),
            unit="reqps",
        ),
        panel(
            "Disagreement",
            (
                f"{_rate('modelserve_shadow_disagreed_total')} / ({compared} > 0) or {compared} * 0",
                RELEASE,
            ),
            unit=SHARE,
        ),
        row("Device and jobs"),
        panel(
            "Accelerator memory",
            (
                'sum by (model, version) (modelserve_device_memory_bytes{model=~"$model"}) '
                'or sum by (model, version) (modelserve_ready{model=~"$model"}) * 0',
                RELEASE,
            ),
            unit="bytes",
            text="Zero on a CPU.",
        ),
        panel(
            "Jobs by state",
            (
                'sum by (model, state) (modelserve_jobs{model=~"$model"}) '
                'or sum by (model) (modelserve_ready{model=~"$model"}) * 0',
                "{{model}} {{state}}",
            ),
            (
                'max by (model) (modelserve_jobs_waiting{model=~"$model"}) '
                'or sum by (model) (modelserve_ready{model=~"$model"}) * 0',
                "{{model}} queued",
            ),
            stack=True,
        ),
    ]
    return dashboard("modelserve-serving", "Serving internals", panels, [MODELS])


def platform() -> dict[str, Any]:
    panels = [
        panel(
            "Since the last sweep",
            ("time() - max(modelserve_sweep_last_success_timestamp_seconds)", ""),
            kind="stat",
            unit="s",
            width=6,
            height=4,
            thresholds=((120, "orange"), (300, "red")),
        ),
        panel(
            "Open promotions",
            ("count(max by (model, version) (modelserve_promotion_running)) or vector(0)", ""),
            kind="stat",
            width=6,
            height=4,
        ),
        panel(
            "Models frozen",
            ("sum(max by (model) (modelserve_model_frozen))", ""),
            kind="stat",
            width=6,
            height=4,
            thresholds=((1, "red"),),
        ),
        panel(
            "Targets down",
            ("count(up == 0) or vector(0)", ""),
            kind="stat",
            width=6,
            height=4,
            thresholds=((1, "orange"),),
        ),
        panel("Alerts firing", ('ALERTS{alertstate="firing"}', ""), kind="table", width=12),
        panel("Targets up", ("min by (job) (up)", "{{job}}"), width=12, maximum=1),
        row("Monitoring itself"),
        panel(
            "Time to evaluate rules",
            ("max by (rule_group) (prometheus_rule_group_last_duration_seconds)", "{{rule_group}}"),
            unit="s",
        ),
        panel("Series", ("sum(prometheus_tsdb_head_series)", "series")),
        panel(
            "Alerts sent and lost",
            ("sum(rate(prometheus_notifications_sent_total[$__rate_interval]))", "sent"),
            ("sum(rate(prometheus_notifications_dropped_total[$__rate_interval]))", "lost"),
            unit="cps",
        ),
        panel(
            "Alerts answered",
            (
                "SELECT received_at AS time, model, outcome FROM alerts "
                "WHERE $__timeFilter(received_at) ORDER BY 1 DESC LIMIT 100",
                "",
            ),
            source=REGISTRY,
            kind="table",
            width=24,
        ),
    ]
    return dashboard("modelserve-platform", "Platform", panels, [])


def cluster() -> dict[str, Any]:
    """Series that the one-machine stack has not: nodes, GPUs, autoscalers, the managed parts of AWS."""
    pool = "label_modelserve_ai_pool"
    panels = [
        row("Nodes"),
        panel("Nodes by pool", (f"count by ({pool}) (kube_node_labels)", f"{{{{{pool}}}}}"), stack=True),
        panel(
            "CPU in use",
            (
                '1 - avg by (instance) (rate(node_cpu_seconds_total{mode="idle"}[$__rate_interval]))',
                "{{instance}}",
            ),
            unit=SHARE,
            maximum=1,
        ),
        panel(
            "Memory in use",
            ("1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes", "{{instance}}"),
            unit=SHARE,
            maximum=1,
        ),
        panel(
            "Pods that wait",
            ('sum by (namespace) (kube_pod_status_phase{phase="Pending"})', "{{namespace}}"),
        ),
        panel(
            "Replicas: wanted by the autoscalers",
            (
                'kube_horizontalpodautoscaler_status_desired_replicas{namespace="modelserve"}',
                "{{horizontalpodautoscaler}}",
            ),
        ),
        panel(
            "Volumes: free",
            (
                "kubelet_volume_stats_available_bytes / kubelet_volume_stats_capacity_bytes",
                "{{persistentvolumeclaim}}",
            ),
            unit=SHARE,
            maximum=1,
        ),
        row("GPUs"),
        panel("GPU in use", ("DCGM_FI_DEV_GPU_UTIL", "{{Hostname}} {{gpu}}"), unit="percent", maximum=100),
        panel(
            "GPU memory in use",
            ("DCGM_FI_DEV_FB_USED / (DCGM_FI_DEV_FB_USED + DCGM_FI_DEV_FB_FREE)", "{{Hostname}} {{gpu}}"),
            unit=SHARE,
            maximum=1,
        ),
        panel("GPU temperature", ("DCGM_FI_DEV_GPU_TEMP", "{{Hostname}} {{gpu}}"), unit="celsius"),
        row("Managed by AWS"),
        panel("Database: CPU", ("aws_rds_cpuutilization_average", "{{name}}"), unit="percent", maximum=100),
        panel("Database: free storage", ("aws_rds_free_storage_space_average", "{{name}}"), unit="bytes"),
        panel(
            "Redis: memory in use",
            ("aws_elasticache_database_memory_usage_percentage_average", "{{name}}"),
            unit="percent",
            maximum=100,
        ),
        panel("Load balancer: own failures", ("aws_applicationelb_httpcode_elb_5_xx_count_sum", "{{name}}")),
        panel("Load balancer: requests", ("aws_applicationelb_request_count_sum", "{{name}}")),
        panel(
            "Certificates: days left",
            ("aws_certificatemanager_days_to_expiry_minimum", "{{name}}"),
        ),
    ]
    return dashboard("modelserve-cluster", "Cluster", panels, [], (CLUSTER_TAG,))


ALL = {
    "models.json": models,
    "promotion.json": promotion,
    "drift.json": drift,
    "serving.json": serving,
    "platform.json": platform,
    "cluster.json": cluster,
}


def text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def differing() -> list[str]:
    """Names of the files that are not what this program would write."""
    wrong = [name for name, make in ALL.items() if not _is(FOLDER / name, text(make()))]
    return wrong + sorted(path.name for path in FOLDER.glob("*.json") if path.name not in ALL)


def _is(path: Path, content: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == content


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        wrong = differing()
        for name in wrong:
            print(
                f"monitoring/dashboards/{name} is not what monitoring/generate_dashboards.py writes; run it"
            )
        return 1 if wrong else 0
    FOLDER.mkdir(exist_ok=True)
    for name, make in ALL.items():
        (FOLDER / name).write_text(text(make()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
