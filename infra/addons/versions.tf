terraform {
  required_version = ">= 1.11, < 2.0"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.42"
    }
    helm = {
      source  = "hashicorp/helm"
      version = "~> 3.1"
    }
    kubernetes = {
      source  = "hashicorp/kubernetes"
      version = "~> 2.38"
    }
  }

  # terraform init -backend-config=../cluster/env/staging.s3.tfbackend
  backend "s3" {
    key          = "modelserve/addons.tfstate"
    encrypt      = true
    use_lockfile = true
  }
}

# A second state, because these providers must be configured before the plan, from a cluster that exists.
data "terraform_remote_state" "cluster" {
  backend = "s3"

  config = {
    bucket = var.state_bucket
    key    = "modelserve/cluster.tfstate"
    region = var.region
  }
}

locals {
  cluster = data.terraform_remote_state.cluster.outputs
  facts   = local.cluster.facts

  kubernetes = {
    host                   = local.cluster.cluster_endpoint
    cluster_ca_certificate = base64decode(local.cluster.cluster_certificate_authority_data)
    # A token of fifteen minutes, asked for when needed: none is kept anywhere.
    exec = {
      api_version = "client.authentication.k8s.io/v1"
      command     = "aws"
      args        = ["eks", "get-token", "--cluster-name", local.facts.cluster_name, "--region", local.facts.region]
    }
  }
}

provider "aws" {
  region              = var.region
  allowed_account_ids = [local.facts.account_id]
}

provider "helm" {
  kubernetes = local.kubernetes
}

provider "kubernetes" {
  host                   = local.kubernetes.host
  cluster_ca_certificate = local.kubernetes.cluster_ca_certificate

  exec {
    api_version = local.kubernetes.exec.api_version
    command     = local.kubernetes.exec.command
    args        = local.kubernetes.exec.args
  }
}
