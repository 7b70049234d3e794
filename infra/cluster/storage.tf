# Buckets (bundles, reports, job chunks, samples; Loki's chunks) and image repositories.

locals {
  bucket_defaults = {
    sse = {
      rule = {
        bucket_key_enabled = true
        apply_server_side_encryption_by_default = {
          sse_algorithm     = "aws:kms"
          kms_master_key_id = module.kms.key_arn
        }
      }
    }
  }
}

module "access_logs" {
  source  = "terraform-aws-modules/s3-bucket/aws"
  version = "5.15.4"

  bucket        = "${local.name}-access-logs-${var.account_id}"
  force_destroy = var.environment != "production"

  attach_access_log_delivery_policy         = true
  access_log_delivery_policy_source_buckets = ["arn:aws:s3:::${local.name}-artifacts-${var.account_id}", "arn:aws:s3:::${local.name}-logs-${var.account_id}"]
  attach_deny_insecure_transport_policy     = true

  # The log delivery service cannot use a customer's key.
  server_side_encryption_configuration = {
    rule = { apply_server_side_encryption_by_default = { sse_algorithm = "AES256" } }
  }
  versioning     = { enabled = true }
  lifecycle_rule = [{ id = "expire", enabled = true, expiration = { days = 90 }, noncurrent_version_expiration = { days = 7 } }]
}

module "artifacts" {
  source  = "terraform-aws-modules/s3-bucket/aws"
  version = "5.15.4"

  bucket        = "${local.name}-artifacts-${var.account_id}"
  force_destroy = var.environment != "production"

  attach_deny_insecure_transport_policy = true
  attach_require_latest_tls_policy      = true

  # The bucket encrypts with its key whatever arrives without a wish of its own. The module's statements about
  # encryption would refuse that too, and with it every upload of an ordinary S3 client.
  attach_policy = true
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      for sid, wish in {
        OtherEncryption = { header = "s3:x-amz-server-side-encryption", ours = "aws:kms" }
        OtherKey        = { header = "s3:x-amz-server-side-encryption-aws-kms-key-id", ours = module.kms.key_arn }
      } :
      {
        Sid       = sid
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:PutObject"
        Resource  = "arn:aws:s3:::${local.name}-artifacts-${var.account_id}/*"
        Condition = {
          Null            = { (wish.header) = "false" }
          StringNotEquals = { (wish.header) = wish.ours }
        }
      }
    ]
  })

  server_side_encryption_configuration = local.bucket_defaults.sse
  versioning                           = { enabled = true }
  logging                              = { target_bucket = module.access_logs.s3_bucket_id, target_prefix = "artifacts/" }

  lifecycle_rule = [
    {
      id                                     = "unfinished-and-overwritten"
      enabled                                = true
      abort_incomplete_multipart_upload_days = 7
      noncurrent_version_expiration          = { days = 90 }
    },
    {
      # Chunks of batch jobs; their results are fetched within days.
      id         = "jobs"
      enabled    = true
      filter     = { prefix = "jobs/" }
      expiration = { days = 30 }
    },
    {
      # Bundles of long retired releases: seldom read, never deleted by a timer.
      id         = "bundles"
      enabled    = true
      filter     = { prefix = "bundles/" }
      transition = [{ days = 60, storage_class = "INTELLIGENT_TIERING" }]
    },
  ]
}

module "logs" {
  source  = "terraform-aws-modules/s3-bucket/aws"
  version = "5.15.4"

  bucket        = "${local.name}-logs-${var.account_id}"
  force_destroy = var.environment != "production"

  attach_deny_insecure_transport_policy = true
  attach_require_latest_tls_policy      = true

  server_side_encryption_configuration = local.bucket_defaults.sse
  versioning                           = { enabled = true }
  logging                              = { target_bucket = module.access_logs.s3_bucket_id, target_prefix = "logs/" }

  # Loki deletes what is past its retention; this is for what it forgets.
  lifecycle_rule = [{
    id                                     = "expire"
    enabled                                = true
    expiration                             = { days = var.log_days + 30 }
    noncurrent_version_expiration          = { days = 7 }
    abort_incomplete_multipart_upload_days = 7
  }]
}

locals {
  repositories = ["flows", "releases"]
}

module "repository" {
  source   = "terraform-aws-modules/ecr/aws"
  version  = "3.2.0"
  for_each = toset(local.repositories)

  repository_name                 = "modelserve/${each.key}"
  repository_image_tag_mutability = "IMMUTABLE"
  repository_image_scan_on_push   = true
  repository_encryption_type      = "KMS"
  repository_kms_key              = module.kms.key_arn
  repository_force_delete         = var.environment != "production"

  repository_lifecycle_policy = jsonencode({
    rules = [
      {
        rulePriority = 1
        description  = "Layers that no tag holds"
        selection    = { tagStatus = "untagged", countType = "sinceImagePushed", countUnit = "days", countNumber = 14 }
        action       = { type = "expire" }
      },
      {
        # Releases that can still be rolled back to are among the newest by far.
        rulePriority = 2
        description  = "The newest images"
        selection    = { tagStatus = "any", countType = "imageCountMoreThan", countNumber = each.key == "releases" ? 1000 : 100 }
        action       = { type = "expire" }
      },
    ]
  })
}
