# Every chart and its version, in one place. `infra/README.md` says how they are raised.
locals {
  charts = {
    metrics-server           = { namespace = "kube-system", version = "3.13.1", repository = "https://kubernetes-sigs.github.io/metrics-server/" }
    cluster-autoscaler       = { namespace = "kube-system", version = "9.59.0", repository = "https://kubernetes.github.io/autoscaler" }
    load-balancer-controller = { namespace = "kube-system", version = "3.5.0", repository = "https://aws.github.io/eks-charts", chart = "aws-load-balancer-controller" }
    nvidia-device-plugin     = { namespace = "kube-system", version = "0.20.0", repository = "https://nvidia.github.io/k8s-device-plugin" }
    external-secrets         = { namespace = "external-secrets", version = "2.9.0", repository = "https://charts.external-secrets.io" }
    kube-prometheus-stack    = { namespace = "monitoring", version = "88.5.3", repository = "https://prometheus-community.github.io/helm-charts" }
    dcgm-exporter            = { namespace = "monitoring", version = "4.8.2", repository = "https://nvidia.github.io/dcgm-exporter/helm-charts" }
    cloudwatch-exporter      = { namespace = "monitoring", version = "0.47.0", repository = "https://prometheus-community.github.io/helm-charts", chart = "prometheus-yet-another-cloudwatch-exporter" }
    loki                     = { namespace = "monitoring", version = "18.11.0", repository = "https://grafana-community.github.io/helm-charts" }
    alloy                    = { namespace = "monitoring", version = "1.11.1", repository = "https://grafana.github.io/helm-charts" }
    istio-base               = { namespace = "istio-system", version = "1.30.3", repository = "https://istio-release.storage.googleapis.com/charts", chart = "base" }
    istio-cni                = { namespace = "istio-system", version = "1.30.3", repository = "https://istio-release.storage.googleapis.com/charts", chart = "cni" }
    istiod                   = { namespace = "istio-system", version = "1.30.3", repository = "https://istio-release.storage.googleapis.com/charts" }
    istio-ingressgateway     = { namespace = "istio-ingress", version = "1.30.3", repository = "https://istio-release.storage.googleapis.com/charts", chart = "gateway" }
    nginx-ingress            = { namespace = "nginx-ingress", version = "2.6.4", repository = "oci://ghcr.io/nginx/charts" }
    keda                     = { namespace = "keda", version = "2.20.2", repository = "https://kedacore.github.io/charts" }
    keda-add-ons-http        = { namespace = "keda", version = "0.15.0", repository = "https://kedacore.github.io/charts" }
    prefect-server           = { namespace = "prefect", version = "2026.8.18172642", repository = "https://prefecthq.github.io/prefect-helm" }
  }

  # What stands in values/<name>.yaml.tftpl between dollar and braces.
  value_facts = merge(local.facts, {
    replicas            = var.replicas
    metrics_retention   = var.metrics_retention
    log_retention_hours = var.log_retention_hours
  })

  values = { for name in keys(local.charts) : name => templatefile("${path.module}/values/${name}.yaml.tftpl", local.value_facts) }

  # Order of installation: each wave needs the custom resources, webhooks or secrets of the one before. What starts
  # beside istiod may start without a sidecar, and is then refused by everybody or talks in the clear.
  waves = {
    first  = ["metrics-server", "cluster-autoscaler", "load-balancer-controller", "nvidia-device-plugin", "external-secrets", "istio-base", "keda"]
    second = ["istiod", "istio-cni"]
    third  = ["istio-ingressgateway", "keda-add-ons-http", "kube-prometheus-stack", "loki", "prefect-server"]
    fourth = ["nginx-ingress", "alloy", "dcgm-exporter", "cloudwatch-exporter"]
  }
}
