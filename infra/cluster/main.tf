# What every file here shares. The layout: one file a concern, public modules pinned, no wrappers of our own.

locals {
  name = "modelserve-${var.environment}"

  tags = {
    Project     = "modelserve"
    Environment = var.environment
    ManagedBy   = "terraform"
  }

  # Names that the manifests of k8s/ use; tests/infra holds that they agree.
  pool_label = "modelserve.ai/pool"
  gpu_taint  = "nvidia.com/gpu"
  workloads = {
    flows  = { namespace = "modelserve-system", service_account = "modelserve-flows" }
    server = { namespace = "modelserve", service_account = "modelserve-server" }
  }
}

# One key for the data of this environment. EKS has a key of its own for the secrets in etcd.
module "kms" {
  source  = "terraform-aws-modules/kms/aws"
  version = "4.2.0"

  description             = "Data of ${local.name}"
  aliases                 = [local.name]
  enable_key_rotation     = true
  deletion_window_in_days = 30
  enable_default_policy   = true

  key_statements = [
    {
      sid    = "LogsEncryptGroups"
      effect = "Allow"
      actions = [
        "kms:Encrypt*", "kms:Decrypt*", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:Describe*",
      ]
      resources  = ["*"]
      principals = [{ type = "Service", identifiers = ["logs.${var.region}.amazonaws.com"] }]
      condition = [{
        test     = "ArnLike"
        variable = "kms:EncryptionContext:aws:logs:arn"
        values   = ["arn:aws:logs:${var.region}:${var.account_id}:log-group:*"]
      }]
    },
    {
      # An encrypted topic drops alarms silently unless their senders may use its key.
      sid        = "AlarmsReachTheTopic"
      effect     = "Allow"
      actions    = ["kms:Decrypt", "kms:GenerateDataKey*"]
      resources  = ["*"]
      principals = [{ type = "Service", identifiers = ["cloudwatch.amazonaws.com", "budgets.amazonaws.com"] }]
      condition = [{
        test     = "StringEquals"
        variable = "aws:SourceAccount"
        values   = [var.account_id]
      }]
    },
  ]
}
