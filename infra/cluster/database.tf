# One PostgreSQL for the registry, for Prefect and for the servers' jobs: three databases, each with its own
# role (made by infra/addons/charts/platform). RDS keeps and rotates the administrator's password itself.
module "database" {
  source  = "terraform-aws-modules/rds/aws"
  version = "7.2.0"

  identifier = local.name

  engine               = "postgres"
  engine_version       = "17"
  family               = "postgres17"
  major_engine_version = "17"
  instance_class       = var.database.instance_class

  allocated_storage     = var.database.storage
  max_allocated_storage = var.database.max_storage
  storage_type          = "gp3"
  storage_encrypted     = true
  kms_key_id            = module.kms.key_arn

  db_name                             = "postgres_admin"
  username                            = "administrator"
  port                                = "5432"
  manage_master_user_password         = true
  master_user_secret_kms_key_id       = module.kms.key_id
  iam_database_authentication_enabled = true

  multi_az               = var.database.multi_az
  publicly_accessible    = false
  create_db_subnet_group = true
  subnet_ids             = module.vpc.intra_subnets
  vpc_security_group_ids = [aws_security_group.database.id]

  backup_retention_period = var.database.backup_days
  backup_window           = "02:00-03:00"
  maintenance_window      = "Sun:03:30-Sun:04:30"
  copy_tags_to_snapshot   = true
  deletion_protection     = var.database.protected
  skip_final_snapshot     = !var.database.protected

  auto_minor_version_upgrade  = true
  allow_major_version_upgrade = false
  blue_green_update           = { enabled = var.database.multi_az }

  performance_insights_enabled    = true
  performance_insights_kms_key_id = module.kms.key_arn
  create_monitoring_role          = true
  monitoring_interval             = 60
  monitoring_role_name            = "${local.name}-database-monitoring"

  enabled_cloudwatch_logs_exports        = ["postgresql", "upgrade"]
  create_cloudwatch_log_group            = true
  cloudwatch_log_group_retention_in_days = var.log_days
  cloudwatch_log_group_kms_key_id        = module.kms.key_arn

  parameters = [
    { name = "rds.force_ssl", value = "1" },
    { name = "log_min_duration_statement", value = "1000" },
    { name = "log_lock_waits", value = "1" },
    { name = "log_connections", value = "1" },
    { name = "log_disconnections", value = "1" },
    # A flow that hangs inside a transaction would keep its model's row locked.
    { name = "idle_in_transaction_session_timeout", value = "600000" },
  ]
}

resource "aws_security_group" "database" {
  name_prefix = "${local.name}-database-"
  description = "PostgreSQL, from the nodes only"
  vpc_id      = module.vpc.vpc_id

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_vpc_security_group_ingress_rule" "database" {
  description                  = "PostgreSQL from pods and nodes"
  security_group_id            = aws_security_group.database.id
  referenced_security_group_id = module.eks.node_security_group_id
  ip_protocol                  = "tcp"
  from_port                    = 5432
  to_port                      = 5432
}

module "cache" {
  source  = "terraform-aws-modules/elasticache/aws"
  version = "1.10.3"

  replication_group_id = local.name
  description          = "Prediction caches, drift samples and rate limits of ${local.name}"

  engine         = "valkey"
  engine_version = "8.0"
  node_type      = var.cache.node_type

  num_cache_clusters         = var.cache.nodes
  automatic_failover_enabled = var.cache.nodes > 1
  multi_az_enabled           = var.cache.nodes > 1

  transit_encryption_enabled = true
  transit_encryption_mode    = "required"
  auth_token                 = random_password.cache.result
  at_rest_encryption_enabled = true
  kms_key_arn                = module.kms.key_arn

  create_parameter_group = true
  parameter_group_family = "valkey8"
  parameters = [
    # Cached answers may go when memory is short; streams of samples have no expiry and stay.
    { name = "maxmemory-policy", value = "volatile-lru" },
  ]

  vpc_id                = module.vpc.vpc_id
  create_subnet_group   = true
  subnet_ids            = module.vpc.intra_subnets
  create_security_group = true
  security_group_rules = {
    nodes = {
      description                  = "Redis protocol from pods and nodes"
      referenced_security_group_id = module.eks.node_security_group_id
    }
  }

  maintenance_window       = "sun:04:30-sun:05:30"
  snapshot_retention_limit = var.cache.nodes > 1 ? 3 : 0
  apply_immediately        = var.environment != "production"

  log_delivery_configuration = {
    slow-log = {
      destination_type                       = "cloudwatch-logs"
      log_format                             = "json"
      cloudwatch_log_group_retention_in_days = var.log_days
      cloudwatch_log_group_kms_key_id        = module.kms.key_arn
    }
  }
}

# ElastiCache has no write-only argument for its token, so this one password is in the (encrypted) state.
resource "random_password" "cache" {
  length  = 48
  special = false
}
