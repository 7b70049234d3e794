output "cluster_facts" {
  description = "What the ConfigMap modelserve-cluster holds."
  value       = local.cluster_facts
}

output "chart_versions" {
  description = "The version of every add-on."
  value       = { for name, chart in local.charts : name => chart.version }
}
