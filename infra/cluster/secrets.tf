# What External Secrets hands to pods. Generated values are ephemeral: they exist while `apply` runs, in AWS
# Secrets Manager afterwards, and never in the state. The names are those of k8s/ and infra/addons.

locals {
  database_roles = {
    registry      = { database = "modelserve", scheme = "postgresql", options = "sslmode=require" }
    jobs-database = { database = "jobs", scheme = "postgresql", options = "sslmode=require" }
    prefect       = { database = "prefect", scheme = "postgresql+asyncpg", options = "ssl=require" }
    # Grafana reads the registry, and nothing else.
    dashboards = { database = "modelserve", scheme = "postgresql", options = "sslmode=require" }
  }

  generated = {
    for secret, role in local.database_roles : secret => {
      username = replace(secret, "-", "_")
      database = role.database
    }
  }

  secret_arns = concat(
    [for secret in aws_secretsmanager_secret.database : secret.arn],
    [for secret in aws_secretsmanager_secret.other : secret.arn],
  )
}

ephemeral "random_password" "database" {
  for_each = local.database_roles
  length   = 40
  special  = false
}

ephemeral "random_password" "token" {
  for_each = toset(["alerts", "prefect", "grafana", "servers", "personal"])
  length   = 48
  special  = false
}

resource "aws_secretsmanager_secret" "database" {
  for_each = local.database_roles

  name                    = "modelserve/${each.key}"
  description             = "Role ${local.generated[each.key].username} of the database ${each.value.database}"
  kms_key_id              = module.kms.key_arn
  recovery_window_in_days = var.environment == "production" ? 30 : 0
}

resource "aws_secretsmanager_secret_version" "database" {
  for_each = local.database_roles

  secret_id                = aws_secretsmanager_secret.database[each.key].id
  secret_string_wo_version = var.database_secrets_version
  secret_string_wo = jsonencode(merge(
    {
      username = local.generated[each.key].username
      password = ephemeral.random_password.database[each.key].result
      database = each.value.database
      url = format(
        "%s://%s:%s@%s/%s?%s", each.value.scheme, local.generated[each.key].username,
        ephemeral.random_password.database[each.key].result, module.database.db_instance_endpoint,
        each.value.database, each.value.options,
      )
    },
    # Basic authentication of Prefect's API, for clients and server alike.
    {
      for key in(each.key == "prefect" ? ["auth"] : []) :
      key => "modelserve:${ephemeral.random_password.token["prefect"].result}"
    },
  ))
}

locals {
  other_secrets = {
    redis        = "URL of the cache"
    alerts       = "Token that Alertmanager shows to the alert receiver"
    servers      = "Keys of X-Feedback-Id and the cache, and of hashes of personal columns"
    grafana      = "Grafana's administrator"
    alertmanager = "slack-url, platform-pager-key, models-pager-key and heartbeat-token, written by a person"
  }
}

resource "aws_secretsmanager_secret" "other" {
  for_each = local.other_secrets

  name                    = "modelserve/${each.key}"
  description             = each.value
  kms_key_id              = module.kms.key_arn
  recovery_window_in_days = var.environment == "production" ? 30 : 0
}

resource "aws_secretsmanager_secret_version" "redis" {
  secret_id                = aws_secretsmanager_secret.other["redis"].id
  secret_string_wo_version = var.database_secrets_version
  secret_string_wo = jsonencode({
    url = "rediss://:${random_password.cache.result}@${module.cache.replication_group_primary_endpoint_address}:6379/0"
  })
}

resource "aws_secretsmanager_secret_version" "alerts" {
  secret_id                = aws_secretsmanager_secret.other["alerts"].id
  secret_string_wo_version = var.database_secrets_version
  secret_string_wo         = jsonencode({ token = ephemeral.random_password.token["alerts"].result })
}

# A version of its own: with another personal key the same people get other hashes.
resource "aws_secretsmanager_secret_version" "servers" {
  secret_id                = aws_secretsmanager_secret.other["servers"].id
  secret_string_wo_version = var.server_keys_version
  secret_string_wo = jsonencode({
    secret       = ephemeral.random_password.token["servers"].result
    personal-key = ephemeral.random_password.token["personal"].result
  })
}

resource "aws_secretsmanager_secret_version" "grafana" {
  secret_id                = aws_secretsmanager_secret.other["grafana"].id
  secret_string_wo_version = var.database_secrets_version
  secret_string_wo = jsonencode({
    username = "admin"
    password = ephemeral.random_password.token["grafana"].result
  })
}
