# Alarms of the managed services, for when the cluster that runs Prometheus is itself the trouble. The same
# figures reach Prometheus through the CloudWatch exporter, and so Alertmanager's routes and the dashboards.
module "alarms_topic" {
  source  = "terraform-aws-modules/sns/aws"
  version = "7.1.0"

  name              = "${local.name}-alarms"
  kms_master_key_id = module.kms.key_id

  enable_default_topic_policy = true
  topic_policy_statements = {
    services = {
      actions    = ["sns:Publish"]
      principals = [{ type = "Service", identifiers = ["cloudwatch.amazonaws.com", "budgets.amazonaws.com"] }]
      condition  = [{ test = "StringEquals", variable = "aws:SourceAccount", values = [var.account_id] }]
    }
  }

  subscriptions = {
    people = { protocol = "email", endpoint = var.alarm_email }
  }
}

locals {
  database_alarms = {
    cpu         = { metric = "CPUUtilization", comparison = "GreaterThanThreshold", threshold = 85, text = "The database's CPU is busy" }
    storage     = { metric = "FreeStorageSpace", comparison = "LessThanThreshold", threshold = 5000000000, text = "The database has less than 5 GB left" }
    memory      = { metric = "FreeableMemory", comparison = "LessThanThreshold", threshold = 200000000, text = "The database is short of memory" }
    connections = { metric = "DatabaseConnections", comparison = "GreaterThanThreshold", threshold = 150, text = "Many connections to the database" }
  }
  cache_alarms = {
    memory    = { metric = "DatabaseMemoryUsagePercentage", threshold = 90, text = "Redis is almost full" }
    cpu       = { metric = "EngineCPUUtilization", threshold = 85, text = "Redis' only thread is busy" }
    evictions = { metric = "Evictions", threshold = 1000, text = "Redis evicts keys" }
  }

  # After a failover another node is the primary: each is watched.
  cache_node_alarms = {
    for pair in setproduct(range(1, var.cache.nodes + 1), keys(local.cache_alarms)) :
    format("%03d-%s", pair[0], pair[1]) => merge(local.cache_alarms[pair[1]], { node = format("%s-%03d", local.name, pair[0]) })
  }
}

module "database_alarm" {
  source   = "terraform-aws-modules/cloudwatch/aws//modules/metric-alarm"
  version  = "5.7.2"
  for_each = local.database_alarms

  alarm_name          = "${local.name}-database-${each.key}"
  alarm_description   = each.value.text
  namespace           = "AWS/RDS"
  metric_name         = each.value.metric
  dimensions          = { DBInstanceIdentifier = module.database.db_instance_identifier }
  statistic           = "Average"
  comparison_operator = each.value.comparison
  threshold           = each.value.threshold
  period              = 300
  evaluation_periods  = 3
  # A database that reports nothing is not well.
  treat_missing_data = "breaching"
  alarm_actions      = [module.alarms_topic.topic_arn]
  ok_actions         = [module.alarms_topic.topic_arn]
}

module "cache_alarm" {
  source   = "terraform-aws-modules/cloudwatch/aws//modules/metric-alarm"
  version  = "5.7.2"
  for_each = local.cache_node_alarms

  alarm_name          = "${local.name}-cache-${each.key}"
  alarm_description   = each.value.text
  namespace           = "AWS/ElastiCache"
  metric_name         = each.value.metric
  dimensions          = { CacheClusterId = each.value.node }
  statistic           = "Average"
  comparison_operator = "GreaterThanThreshold"
  threshold           = each.value.threshold
  period              = 300
  evaluation_periods  = 3
  treat_missing_data  = "missing"
  alarm_actions       = [module.alarms_topic.topic_arn]
  ok_actions          = [module.alarms_topic.topic_arn]
}

# FATAL and PANIC lines of PostgreSQL as a metric; rules/platform.yml reads it as
# aws_modelserveai_database_fatal_sum.
module "database_fatal" {
  source  = "terraform-aws-modules/cloudwatch/aws//modules/log-metric-filter"
  version = "5.7.2"

  name                                = "${local.name}-database-fatal"
  log_group_name                      = module.database.db_instance_cloudwatch_log_groups["postgresql"].name
  pattern                             = "?FATAL ?PANIC"
  metric_transformation_namespace     = "ModelServeAI"
  metric_transformation_name          = "DatabaseFatal"
  metric_transformation_default_value = "0"
}

resource "aws_budgets_budget" "month" {
  name         = local.name
  budget_type  = "COST"
  time_unit    = "MONTHLY"
  limit_amount = tostring(var.monthly_budget_usd)
  limit_unit   = "USD"

  cost_filter {
    name   = "TagKeyValue"
    values = [format("user:Environment$%s", var.environment)]
  }

  dynamic "notification" {
    for_each = { ACTUAL = 80, FORECASTED = 100 }

    content {
      notification_type         = notification.key
      comparison_operator       = "GREATER_THAN"
      threshold                 = notification.value
      threshold_type            = "PERCENTAGE"
      subscriber_sns_topic_arns = [module.alarms_topic.topic_arn]
    }
  }
}
