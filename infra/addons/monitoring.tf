# The files under monitoring/ are the truth; here they are handed to the charts as they stand, except for two
# addresses that only an environment knows.

locals {
  monitoring = "${path.module}/../../monitoring"

  runbooks = "runbook_url: ${var.repository_url}/blob/main/monitoring/"

  # Envoy's dialect is the one-machine stack's; the cluster has Istio's.
  rules = {
    for file in fileset("${local.monitoring}/rules", "*.yml") :
    trimsuffix(file, ".yml") => yamldecode(replace(file("${local.monitoring}/rules/${file}"), "runbook_url: monitoring/", local.runbooks))
    if file != "traffic-envoy.yml"
  }

  alertmanager = replace(file("${local.monitoring}/alertmanager.yml"), "https://heartbeat.invalid/modelserve", var.heartbeat_url)

  monitoring_values = yamlencode({
    additionalPrometheusRulesMap = local.rules
    alertmanager                 = { config = yamldecode(local.alertmanager) }
  })

  collector_values = yamlencode({
    alloy = { configMap = { content = file("${local.monitoring}/loki/collector.alloy") } }
  })
}

# Grafana's sidecar provisions every ConfigMap with this label.
resource "kubernetes_config_map_v1" "dashboard" {
  for_each = fileset("${local.monitoring}/dashboards", "*.json")

  metadata {
    name      = "modelserve-dashboard-${trimsuffix(each.key, ".json")}"
    namespace = "monitoring"
    labels    = { grafana_dashboard = "1" }
  }

  data = { (each.key) = file("${local.monitoring}/dashboards/${each.key}") }

  depends_on = [kubernetes_namespace_v1.this]
}

# Loki's sidecar loads every ConfigMap with this label into the ruler.
resource "kubernetes_config_map_v1" "log_rules" {
  metadata {
    name      = "modelserve-log-rules"
    namespace = "monitoring"
    labels    = { loki_rule = "1" }
  }

  data = {
    "modelserve.yml" = replace(file("${local.monitoring}/loki/rules.yml"), "runbook_url: monitoring/", local.runbooks)
  }

  depends_on = [kubernetes_namespace_v1.this]
}
