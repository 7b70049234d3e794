# `terraform test`: plans with a mock of AWS, so that no account is needed. Modules are replaced by the outputs
# that this configuration reads; what is tested is what is written here. `random` is the real one: it needs no
# account, and a mock provider cannot open its ephemeral passwords.

mock_provider "aws" {}

override_module {
  target = module.kms
  outputs = {
    key_arn = "arn:aws:kms:eu-central-1:111111111111:key/mock"
    key_id  = "mock"
  }
}

override_module {
  target = module.vpc
  outputs = {
    vpc_id                  = "vpc-mock"
    private_subnets         = ["subnet-1", "subnet-2", "subnet-3"]
    intra_subnets           = ["subnet-4", "subnet-5", "subnet-6"]
    private_route_table_ids = ["rtb-1"]
    intra_route_table_ids   = ["rtb-2"]
  }
}

override_module {
  target = module.vpc_endpoints
}

override_module {
  target = module.eks
  outputs = {
    cluster_name                       = "modelserve-staging"
    cluster_endpoint                   = "https://kubernetes.invalid"
    cluster_certificate_authority_data = "bW9jaw=="
    node_security_group_id             = "sg-nodes"
    oidc_provider                      = "oidc.invalid/id/mock"
    oidc_provider_arn                  = "arn:aws:iam::111111111111:oidc-provider/oidc.invalid/id/mock"
  }
}

override_module {
  target  = module.workload
  outputs = { arn = "arn:aws:iam::111111111111:role/mock" }
}

override_module {
  target  = module.identity
  outputs = { iam_role_arn = "arn:aws:iam::111111111111:role/mock" }
}

override_module {
  target = module.load_balancer_controller
}

override_module {
  target = module.cluster_autoscaler
}

override_module {
  target = module.external_secrets
}

override_module {
  target = module.loki
}

override_module {
  target = module.cloudwatch_exporter
}

override_module {
  target  = module.access_logs
  outputs = { s3_bucket_id = "access-logs" }
}

override_module {
  target = module.artifacts
  outputs = {
    s3_bucket_id  = "artifacts"
    s3_bucket_arn = "arn:aws:s3:::artifacts"
  }
}

override_module {
  target = module.logs
  outputs = {
    s3_bucket_id  = "logs"
    s3_bucket_arn = "arn:aws:s3:::logs"
  }
}

override_module {
  target = module.repository
  outputs = {
    repository_arn = "arn:aws:ecr:eu-central-1:111111111111:repository/modelserve/mock"
    repository_url = "111111111111.dkr.ecr.eu-central-1.amazonaws.com/modelserve/mock"
  }
}

override_module {
  target = module.database
  outputs = {
    db_instance_address                = "database.invalid"
    db_instance_endpoint               = "database.invalid:5432"
    db_instance_port                   = 5432
    db_instance_identifier             = "modelserve-staging"
    db_instance_master_user_secret_arn = "arn:aws:secretsmanager:eu-central-1:111111111111:secret:rds!db-mock"
    db_instance_cloudwatch_log_groups  = { postgresql = { name = "/aws/rds/instance/mock/postgresql" } }
  }
}

override_module {
  target  = module.cache
  outputs = { replication_group_primary_endpoint_address = "cache.invalid" }
}

override_module {
  target = module.github_oidc
}

override_module {
  target = module.github_role
  outputs = {
    arn  = "arn:aws:iam::111111111111:role/mock"
    name = "mock"
  }
}

override_module {
  target  = module.github_secrets_policy
  outputs = { arn = "arn:aws:iam::111111111111:policy/mock" }
}

override_module {
  target  = module.alarms_topic
  outputs = { topic_arn = "arn:aws:sns:eu-central-1:111111111111:mock" }
}

override_module {
  target = module.database_alarm
}

override_module {
  target = module.cache_alarm
}

override_module {
  target = module.database_fatal
}

variables {
  environment  = "staging"
  account_id   = "111111111111"
  region       = "eu-central-1"
  vpc_cidr     = "10.10.0.0/16"
  zones        = ["eu-central-1a", "eu-central-1b", "eu-central-1c"]
  nat_per_zone = false

  admin_role_arns = ["arn:aws:iam::111111111111:role/platform-admin"]

  node_groups = {
    system = { instance_types = ["m7i.large"], min = 2, max = 4, desired = 2, disk_gib = 60 }
    cpu    = { instance_types = ["m7i.xlarge"], min = 1, max = 6, desired = 1, disk_gib = 100 }
    gpu    = { instance_types = ["g5.xlarge"], min = 0, max = 2, desired = 0, disk_gib = 150 }
  }

  database = {
    instance_class = "db.t4g.medium", storage = 50, max_storage = 200, multi_az = false, backup_days = 7, protected = false
  }

  cache              = { node_type = "cache.t4g.small", nodes = 1 }
  log_days           = 30
  alarm_email        = "platform@example.com"
  monthly_budget_usd = 1000
  github_repository  = "example/modelserveai"
}

run "facts_reach_the_addons" {
  command = plan

  assert {
    condition     = output.facts.artifacts == "s3://artifacts"
    error_message = "addons hand out the artifact bucket as an fsspec URI"
  }

  assert {
    condition     = output.facts.registry == "111111111111.dkr.ecr.eu-central-1.amazonaws.com"
    error_message = "the registry is the host alone"
  }
}

run "servers_read_bundles_and_write_jobs_only" {
  command = plan

  assert {
    condition = alltrue([
      for statement in concat(local.workload_statements.server, local.workload_statements.flows) : !anytrue([
        for action in statement.actions : startswith(action, "ecr:") || action == "s3:*"
      ])
    ])
    error_message = "no pod has business in the image registry: images come from cd.yml, and the kubelet pulls"
  }

  assert {
    condition = alltrue([
      for statement in local.workload_statements.server :
      !contains(statement.actions, "s3:PutObject") || tolist(statement.resources) == tolist(["arn:aws:s3:::artifacts/jobs/*"])
    ])
    error_message = "a server writes under jobs/ and nowhere else"
  }
}

run "pull_requests_may_look_only" {
  command = plan

  assert {
    condition     = local.github_roles.plan.subjects == ["example/modelserveai:pull_request"]
    error_message = "the plan role trusts pull requests of this repository"
  }

  assert {
    condition     = alltrue([for subject in local.github_roles.apply.subjects : endswith(subject, ":environment:staging-infra")])
    error_message = "the apply role trusts only runs that an environment has approved"
  }

  assert {
    condition     = keys(local.access_entries.github-plan.policy_associations) == ["view"]
    error_message = "a plan sees the cluster and changes nothing"
  }
}

run "the_database_is_reached_from_nodes_only" {
  command = plan

  assert {
    condition     = aws_vpc_security_group_ingress_rule.database.referenced_security_group_id == "sg-nodes"
    error_message = "PostgreSQL is open to the nodes' security group"
  }

  assert {
    condition     = aws_vpc_security_group_ingress_rule.database.from_port == 5432 && aws_vpc_security_group_ingress_rule.database.to_port == 5432
    error_message = "and only on its port"
  }
}

run "secrets_have_the_names_that_manifests_use" {
  command = plan

  assert {
    condition = toset(concat(keys(local.database_roles), keys(local.other_secrets))) == toset([
      "registry", "jobs-database", "prefect", "dashboards", "redis", "alerts", "servers", "grafana", "alertmanager",
    ])
    error_message = "k8s/ and the platform chart name these"
  }
}

run "every_node_of_the_cache_is_watched" {
  command = plan

  variables {
    cache = { node_type = "cache.t4g.small", nodes = 2 }
  }

  assert {
    condition     = toset([for alarm in local.cache_node_alarms : alarm.node]) == toset(["modelserve-staging-001", "modelserve-staging-002"])
    error_message = "after a failover another node is the primary"
  }
}

run "an_idle_gpu_is_refused" {
  command = plan

  variables {
    node_groups = {
      system = { instance_types = ["m7i.large"], min = 2, max = 4, desired = 2, disk_gib = 60 }
      cpu    = { instance_types = ["m7i.xlarge"], min = 1, max = 6, desired = 1, disk_gib = 100 }
      gpu    = { instance_types = ["g5.xlarge"], min = 1, max = 2, desired = 1, disk_gib = 150 }
    }
  }

  expect_failures = [var.node_groups]
}

run "an_api_open_to_the_internet_is_refused" {
  command = plan

  variables {
    api_public_cidrs = ["0.0.0.0/0"]
  }

  expect_failures = [var.api_public_cidrs]
}

run "a_zone_of_another_region_is_refused" {
  command = plan

  variables {
    zones = ["eu-central-1a", "eu-central-1b", "us-east-1a"]
  }

  expect_failures = [var.zones]
}
