variable "environment" {
  description = "staging or production; part of every name."
  type        = string

  validation {
    condition     = contains(["staging", "production"], var.environment)
    error_message = "environment must be staging or production."
  }
}

variable "account_id" {
  description = "The AWS account of this environment."
  type        = string

  validation {
    condition     = can(regex("^[0-9]{12}$", var.account_id))
    error_message = "account_id must have 12 digits."
  }
}

variable "region" {
  description = "AWS region."
  type        = string
}

variable "vpc_cidr" {
  description = "The VPC's address range, a /16. The network policies of k8s/overlays name the same one."
  type        = string

  validation {
    condition     = can(cidrhost(var.vpc_cidr, 0)) && endswith(var.vpc_cidr, "/16")
    error_message = "vpc_cidr must be a /16, such as 10.10.0.0/16."
  }
}

variable "zones" {
  description = "Three availability zones, by name: a zone that AWS adds must not move subnets."
  type        = list(string)

  validation {
    condition     = length(var.zones) == 3 && alltrue([for zone in var.zones : startswith(zone, var.region)])
    error_message = "zones must be three zones of the region."
  }
}

variable "nat_per_zone" {
  description = "A NAT gateway in every zone (survives the loss of a zone) or one for all (cheaper)."
  type        = bool
}

variable "interface_endpoints" {
  description = "AWS services reached by a private address of the VPC, instead of through NAT."
  type        = set(string)
  default     = ["ecr.api", "ecr.dkr", "sts", "secretsmanager"]
}

variable "kubernetes_version" {
  description = "EKS minor version."
  type        = string
  default     = "1.35"
}

variable "api_public_cidrs" {
  description = "Addresses that may reach the Kubernetes API from outside of the VPC. None: private only."
  type        = list(string)
  default     = []

  validation {
    condition     = !contains(var.api_public_cidrs, "0.0.0.0/0")
    error_message = "the Kubernetes API is not opened to the whole internet; list offices or VPNs."
  }
}

variable "admin_role_arns" {
  description = "IAM roles of people who administer the cluster."
  type        = list(string)
}

variable "node_groups" {
  description = "The three pools. A pool's name is the node label modelserve.ai/pool, which manifests select."
  type = map(object({
    instance_types = list(string)
    min            = number
    max            = number
    desired        = number
    disk_gib       = number
    capacity       = optional(string, "ON_DEMAND")
  }))

  validation {
    condition     = toset(keys(var.node_groups)) == toset(["system", "cpu", "gpu"])
    error_message = "node_groups must be exactly system, cpu and gpu."
  }

  validation {
    condition     = try(var.node_groups["gpu"].min, -1) == 0
    error_message = "node_groups.gpu.min must be 0: idle GPUs are the dearest thing here."
  }

  validation {
    condition     = alltrue([for group in values(var.node_groups) : group.min <= group.desired && group.desired <= group.max])
    error_message = "every node group needs min <= desired <= max."
  }
}

variable "database" {
  description = "PostgreSQL of the registry, of Prefect and of the jobs. Storage in GiB; it grows by itself."
  type = object({
    instance_class = string
    storage        = number
    max_storage    = number
    multi_az       = bool
    backup_days    = number
    protected      = bool
  })
}

variable "database_secrets_version" {
  description = "Raise it to give every database role a new password."
  type        = number
  default     = 1
}

variable "server_keys_version" {
  description = "Raise it to give the servers new keys: feedback for answers of before is refused, and hashes of personal columns no longer equal those of before."
  type        = number
  default     = 1
}

variable "cache" {
  description = "Redis of caches and drift samples. Nodes: 1, or more for automatic failover."
  type = object({
    node_type = string
    nodes     = number
  })
}

variable "log_days" {
  description = "How long CloudWatch keeps logs."
  type        = number
}

variable "alarm_email" {
  description = "Who gets the alarms of the managed services and of the budget."
  type        = string
}

variable "monthly_budget_usd" {
  description = "Alarm at 80 % spent and at 100 % forecast."
  type        = number
}

variable "github_repository" {
  description = "owner/name of the repository whose workflows may take the roles of github.tf; owner@ID/name@ID where its tokens say so."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9-]+(/[A-Za-z0-9._-]+|@[0-9]+/[A-Za-z0-9._-]+@[0-9]+)$", var.github_repository))
    error_message = "github_repository must be owner/name, or owner@ID/name@ID with GitHub's numbers of both."
  }
}
