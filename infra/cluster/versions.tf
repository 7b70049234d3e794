terraform {
  # Ephemeral values and write-only arguments: no database password reaches the state.
  required_version = ">= 1.11, < 2.0"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.42"
    }
    random = {
      source  = "hashicorp/random"
      version = "~> 3.7"
    }
  }

  # terraform init -backend-config=env/staging.s3.tfbackend
  backend "s3" {
    key          = "modelserve/cluster.tfstate"
    encrypt      = true
    use_lockfile = true
  }
}

provider "aws" {
  region = var.region

  # A plan against the wrong account must end at once.
  allowed_account_ids = [var.account_id]

  default_tags {
    tags = local.tags
  }
}
