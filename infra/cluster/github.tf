# Roles that GitHub's workflows take by OIDC: no access key exists. Each trusts one kind of run only.
module "github_oidc" {
  source  = "terraform-aws-modules/iam/aws//modules/iam-oidc-provider"
  version = "6.5.0"

  url = "https://token.actions.githubusercontent.com"
}

locals {
  github_roles = {
    # infra.yml on a pull request: may look, not touch.
    plan = {
      subjects = ["${var.github_repository}:pull_request"]
      policies = { view = "arn:aws:iam::aws:policy/ReadOnlyAccess" }
      permissions = {
        Unlock = {
          actions   = ["s3:PutObject", "s3:DeleteObject"]
          resources = ["arn:aws:s3:::${local.name}-terraform-${var.account_id}/*.tflock"]
        }
        NoSecretsInPlans = {
          effect    = "Deny"
          actions   = ["secretsmanager:GetSecretValue", "s3:GetObject"]
          resources = ["arn:aws:secretsmanager:${var.region}:${var.account_id}:secret:modelserve/*", "${local.artifacts}/*"]
        }
      }
    }
    # infra.yml after the approval of the environment.
    apply = {
      subjects    = ["${var.github_repository}:environment:${var.environment}-infra"]
      policies    = { admin = "arn:aws:iam::aws:policy/AdministratorAccess" }
      permissions = null
    }
    # cd.yml after the approval of the environment: registers bundles and pushes images; the promotion itself
    # runs in the cluster under its own identity.
    deploy = {
      subjects = ["${var.github_repository}:environment:${var.environment}"]
      policies = {}
      permissions = {
        for statement in concat(local.workload_statements.flows, local.publish_statements) : statement.sid => statement
      }
    }
  }
}

module "github_role" {
  source   = "terraform-aws-modules/iam/aws//modules/iam-role"
  version  = "6.5.0"
  for_each = local.github_roles

  name            = "${local.name}-github-${each.key}"
  use_name_prefix = false
  description     = "GitHub workflows of ${var.github_repository}: ${each.key}"

  # A run that is stolen is worth an hour.
  max_session_duration = 3600

  enable_github_oidc = true
  oidc_subjects      = [for subject in each.value.subjects : "repo:${subject}"]

  policies                  = each.value.policies
  create_inline_policy      = each.value.permissions != null
  inline_policy_permissions = each.value.permissions
}

# What cd.yml needs to know to reach this environment's control plane, and may read.
module "github_secrets_policy" {
  source  = "terraform-aws-modules/iam/aws//modules/iam-policy"
  version = "6.5.0"

  name        = "${local.name}-github-deploy-secrets"
  description = "The registry's and Prefect's addresses, for registering a release"
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Effect   = "Allow"
        Action   = "secretsmanager:GetSecretValue"
        Resource = [for secret in ["registry", "prefect"] : aws_secretsmanager_secret.database[secret].arn]
      },
      {
        Effect    = "Allow"
        Action    = "kms:Decrypt"
        Resource  = module.kms.key_arn
        Condition = { StringEquals = { "kms:ViaService" = "secretsmanager.${var.region}.amazonaws.com" } }
      },
    ]
  })
}

resource "aws_iam_role_policy_attachment" "github_deploy_secrets" {
  role       = module.github_role["deploy"].name
  policy_arn = module.github_secrets_policy.arn
}
