# First what answers users, then what decides and goes back, and housekeeping in nobody's place. A job a minute that
# could preempt would evict something every minute on a full node.
locals {
  priorities = {
    # Whatever names no class is a part of the platform: gateways, istiod, KEDA, Prometheus.
    modelserve-serving      = { value = 900000, default = true, preempts = "PreemptLowerPriority", description = "What answers users, and whatever names no class. The gateway, the mesh, autoscalers, model servers." }
    modelserve-control      = { value = 800000, default = false, preempts = "PreemptLowerPriority", description = "What decides and goes back. Worker, alert receiver, promotions, rollbacks, the sweep." }
    modelserve-housekeeping = { value = -10, default = false, preempts = "Never", description = "What may wait for a node. Drift checks, training, the archive." }
  }
}

resource "kubernetes_priority_class_v1" "this" {
  for_each = local.priorities

  metadata {
    name = each.key
  }

  value             = each.value.value
  global_default    = each.value.default
  preemption_policy = each.value.preempts
  description       = each.value.description
}
