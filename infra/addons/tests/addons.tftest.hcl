# `terraform test` with mock providers: what the charts and the pods are handed.

mock_provider "aws" {}
mock_provider "helm" {}
mock_provider "kubernetes" {}

override_data {
  target = data.terraform_remote_state.cluster
  values = {
    outputs = {
      cluster_endpoint                   = "https://kubernetes.invalid"
      cluster_certificate_authority_data = "bW9jaw=="
      facts = {
        environment  = "staging"
        region       = "eu-central-1"
        account_id   = "111111111111"
        cluster_name = "modelserve-staging"
        vpc_id       = "vpc-mock"
        artifacts    = "s3://artifacts"
        logs_bucket  = "logs"
        registry     = "111111111111.dkr.ecr.eu-central-1.amazonaws.com"
        database     = { host = "database.invalid", port = 5432, master_secret = "arn:mock", passwords_version = 1 }
        alarms_topic = "arn:mock"
      }
    }
  }
}

variables {
  region              = "eu-central-1"
  state_bucket        = "state"
  heartbeat_url       = "https://heartbeat.example.com/staging"
  repository_url      = "https://github.com/example/modelserveai"
  replicas            = 2
  log_retention_hours = 168
}

run "pods_get_the_facts" {
  command = plan

  assert {
    condition     = output.cluster_facts.SERVING_JOBS_URI == "s3://artifacts/jobs"
    error_message = "servers keep job chunks under jobs/, where their role may write"
  }

  assert {
    condition     = output.cluster_facts.PREFECT_API_URL == output.cluster_facts.MODELSERVE_PREFECT_URL
    error_message = "Prefect has one address"
  }
}

run "every_chart_is_installed_once" {
  command = plan

  assert {
    condition     = sort(flatten(values(local.waves))) == sort(keys(local.charts))
    error_message = "every chart belongs to exactly one wave"
  }

  assert {
    condition     = alltrue([for chart in values(local.charts) : can(regex("^[0-9]+[.][0-9]+[.][0-9]+$", chart.version))])
    error_message = "every chart is pinned to one version"
  }

  assert {
    condition     = alltrue([for chart in values(local.charts) : contains(keys(local.namespaces), chart.namespace) || chart.namespace == "kube-system"])
    error_message = "every chart's namespace is made here"
  }
}

run "alerts_know_their_environment" {
  command = plan

  assert {
    condition     = !strcontains(local.alertmanager, "heartbeat.invalid")
    error_message = "every placeholder of monitoring/alertmanager.yml is replaced"
  }

  assert {
    condition     = alltrue([for rules in values(local.rules) : !strcontains(yamlencode(rules), "runbook_url: monitoring/")])
    error_message = "runbook links lead to a browser"
  }

  assert {
    condition     = !contains(keys(local.rules), "traffic-envoy") && contains(keys(local.rules), "traffic-istio")
    error_message = "the cluster speaks Istio's dialect"
  }
}

run "a_heartbeat_without_tls_is_refused" {
  command = plan

  variables {
    heartbeat_url = "http://heartbeat.example.com"
  }

  expect_failures = [var.heartbeat_url]
}
