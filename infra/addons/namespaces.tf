locals {
  injected   = { "istio-injection" = "enabled" }
  restricted = { "pod-security.kubernetes.io/enforce" = "restricted" }
  baseline   = { "pod-security.kubernetes.io/enforce" = "baseline" }
  # The node exporter, the device plugin and the CNI need the node itself.
  privileged = { "pod-security.kubernetes.io/enforce" = "privileged" }

  namespaces = {
    modelserve        = merge(local.injected, local.restricted)
    modelserve-system = merge(local.injected, local.restricted)
    istio-system      = local.privileged
    istio-ingress     = merge(local.injected, local.baseline)
    nginx-ingress     = merge(local.injected, local.baseline)
    keda              = merge(local.injected, local.restricted)
    monitoring        = local.privileged
    prefect           = local.baseline
    external-secrets  = local.restricted
  }

  # The facts of this environment. Pods take them with envFrom; no endpoint is typed a second time in k8s/.
  cluster_facts = {
    AWS_REGION                  = local.facts.region
    AWS_DEFAULT_REGION          = local.facts.region
    MODELSERVE_ARTIFACTS_URI    = local.facts.artifacts
    MODELSERVE_RESULTS_URI      = "${local.facts.artifacts}/results"
    MODELSERVE_IMAGE_REPOSITORY = "${local.facts.registry}/modelserve/releases"
    MODELSERVE_PROMETHEUS_URL   = "http://kube-prometheus-stack-prometheus.monitoring.svc:9090"
    MODELSERVE_GATEWAY_URL      = "http://istio-ingressgateway.istio-ingress.svc"
    MODELSERVE_PREFECT_URL      = "http://prefect-server.prefect.svc:4200/api"
    PREFECT_API_URL             = "http://prefect-server.prefect.svc:4200/api"
    SERVING_JOBS_URI            = "${local.facts.artifacts}/jobs"
  }
}

resource "kubernetes_namespace_v1" "this" {
  for_each = local.namespaces

  metadata {
    name   = each.key
    labels = each.value
  }

  lifecycle {
    # kustomize (k8s/base/namespaces.yaml) adds labels of its own.
    ignore_changes = [metadata[0].labels, metadata[0].annotations]
  }
}

resource "kubernetes_config_map_v1" "cluster" {
  for_each = toset(["modelserve", "modelserve-system"])

  metadata {
    name      = "modelserve-cluster"
    namespace = kubernetes_namespace_v1.this[each.key].metadata[0].name
  }

  data = local.cluster_facts
}
