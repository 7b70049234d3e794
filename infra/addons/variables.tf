variable "region" {
  description = "AWS region of the cluster and of the state bucket."
  type        = string
}

variable "state_bucket" {
  description = "The bucket that holds the state of infra/cluster."
  type        = string
}

variable "heartbeat_url" {
  description = "Where the dead-man's switch listens; it takes a POST with a bearer token."
  type        = string

  validation {
    condition     = startswith(var.heartbeat_url, "https://")
    error_message = "heartbeat_url must begin with https://."
  }
}

variable "repository_url" {
  description = "The repository in a browser: runbook links in alerts begin with it."
  type        = string

  validation {
    condition     = startswith(var.repository_url, "https://") && !endswith(var.repository_url, "/")
    error_message = "repository_url must begin with https:// and not end with a slash."
  }
}

variable "replicas" {
  description = "Copies of what must survive the loss of a node: istiod, gateways, ingress, Prefect's API."
  type        = number

  validation {
    condition     = var.replicas >= 1
    error_message = "replicas must be at least 1."
  }
}

variable "metrics_retention" {
  description = "How long Prometheus keeps samples. The SLO rules read three days."
  type        = string
  default     = "15d"
}

variable "log_retention_hours" {
  description = "How long Loki keeps lines, in whole days."
  type        = number

  validation {
    condition     = var.log_retention_hours >= 24 && var.log_retention_hours % 24 == 0
    error_message = "log_retention_hours must be a multiple of 24."
  }
}
