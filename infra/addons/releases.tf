# `atomic`: a failed upgrade goes back by itself; `wait`: the next wave finds what it needs.

resource "helm_release" "first" {
  for_each = toset(local.waves.first)

  name       = each.key
  repository = local.charts[each.key].repository
  chart      = try(local.charts[each.key].chart, each.key)
  version    = local.charts[each.key].version
  namespace  = local.charts[each.key].namespace
  values     = [local.values[each.key]]
  atomic     = true
  wait       = true
  timeout    = 600

  depends_on = [kubernetes_namespace_v1.this, kubernetes_priority_class_v1.this]
}

resource "helm_release" "second" {
  for_each = toset(local.waves.second)

  name       = each.key
  repository = local.charts[each.key].repository
  chart      = try(local.charts[each.key].chart, each.key)
  version    = local.charts[each.key].version
  namespace  = local.charts[each.key].namespace
  values     = [local.values[each.key]]
  atomic     = true
  wait       = true
  timeout    = 600

  depends_on = [helm_release.first]
}

# Our own objects that need custom resources: the secret store, secrets of the add-ons, databases and roles,
# the mesh's telemetry, storage classes. A chart, since Terraform cannot plan kinds that do not exist yet.
resource "helm_release" "platform" {
  name      = "modelserve-platform"
  chart     = "${path.module}/charts/platform"
  namespace = "external-secrets"
  atomic    = true
  wait      = true
  timeout   = 900

  values = [yamlencode({
    region   = local.facts.region
    database = local.facts.database
    # Shown in the release, so that a change of the scripts upgrades it.
    scripts = sha256(join("", [for file in fileset("${path.module}/charts/platform", "**") : filesha256("${path.module}/charts/platform/${file}")]))
  })]

  depends_on = [helm_release.second]
}

resource "helm_release" "third" {
  for_each = toset(local.waves.third)

  name       = each.key
  repository = local.charts[each.key].repository
  chart      = try(local.charts[each.key].chart, each.key)
  version    = local.charts[each.key].version
  namespace  = local.charts[each.key].namespace
  values     = concat([local.values[each.key]], each.key == "kube-prometheus-stack" ? [local.monitoring_values] : [])
  atomic     = true
  wait       = true
  timeout    = 900

  depends_on = [helm_release.platform]
}

resource "helm_release" "fourth" {
  for_each = toset(local.waves.fourth)

  name       = each.key
  repository = local.charts[each.key].repository
  chart      = try(local.charts[each.key].chart, each.key)
  version    = local.charts[each.key].version
  namespace  = local.charts[each.key].namespace
  values     = concat([local.values[each.key]], each.key == "alloy" ? [local.collector_values] : [])
  atomic     = true
  wait       = true
  timeout    = 600

  depends_on = [helm_release.third]
}
