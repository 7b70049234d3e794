# One role a workload: add-ons take theirs by EKS Pod Identity, our own workloads by the OIDC provider (IRSA).

locals {
  artifacts      = module.artifacts.s3_bucket_arn
  use_data_key   = ["kms:Decrypt", "kms:GenerateDataKey"]
  data_key_by_s3 = [{ test = "StringEquals", variable = "kms:ViaService", values = ["s3.${var.region}.amazonaws.com"] }]

  list_bucket = {
    sid       = "ListBucket"
    actions   = ["s3:ListBucket"]
    resources = [local.artifacts]
  }
  use_key_for_objects = {
    sid       = "UseKeyForObjects"
    actions   = local.use_data_key
    resources = [module.kms.key_arn]
    condition = local.data_key_by_s3
  }

  # For cd.yml alone, which builds, scans and pushes what promotions take by digest.
  publish_statements = [
    {
      sid = "PushImages"
      actions = [
        "ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:CompleteLayerUpload",
        "ecr:DescribeImages", "ecr:DescribeImageScanFindings", "ecr:GetDownloadUrlForLayer",
        "ecr:InitiateLayerUpload", "ecr:PutImage", "ecr:UploadLayerPart",
      ]
      resources = [for repository in module.repository : repository.repository_arn]
    },
    {
      # Has no resource to name.
      sid       = "LogInToRegistry"
      actions   = ["ecr:GetAuthorizationToken"]
      resources = ["*"]
    },
  ]

  workload_statements = {
    # Reads bundles, keeps reports and samples. Images come ready-made: the kubelet pulls them.
    flows = [
      local.list_bucket,
      local.use_key_for_objects,
      {
        sid       = "KeepArtifacts"
        actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
        resources = ["${local.artifacts}/*"]
      },
    ]
    # Reads bundles; writes only the chunks of its jobs.
    server = [
      merge(local.list_bucket, {
        condition = [{ test = "StringLike", variable = "s3:prefix", values = ["bundles/*", "jobs/*"] }]
      }),
      local.use_key_for_objects,
      {
        sid       = "ReadBundles"
        actions   = ["s3:GetObject"]
        resources = ["${local.artifacts}/bundles/*"]
      },
      {
        sid       = "KeepJobs"
        actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"]
        resources = ["${local.artifacts}/jobs/*"]
      },
    ]
  }
}

# By the cluster's OIDC provider (IRSA) and not by Pod Identity: the network policies of k8s/ keep these pods from
# link-local addresses, where the node's own credentials are to be had, and Pod Identity's agent as well.
module "workload" {
  source   = "terraform-aws-modules/iam/aws//modules/iam-role"
  version  = "6.5.0"
  for_each = local.workloads

  name            = "${local.name}-${each.key}"
  use_name_prefix = false
  description     = "${each.value.service_account} in ${each.value.namespace} of ${local.name}"

  enable_oidc        = true
  oidc_provider_urls = [module.eks.oidc_provider]
  oidc_subjects      = ["system:serviceaccount:${each.value.namespace}:${each.value.service_account}"]
  oidc_audiences     = ["sts.amazonaws.com"]

  create_inline_policy = true
  inline_policy_permissions = {
    for statement in local.workload_statements[each.key] : statement.sid => statement
  }
}

locals {
  # Of EKS' own add-ons: the association is made by the add-on, which must exist before the first node.
  identities = {
    vpc-cni          = { vpc_cni = true }
    ebs-csi          = { ebs_csi = true }
    cloudwatch-agent = { cloudwatch = true }
  }
}

module "identity" {
  source   = "terraform-aws-modules/eks-pod-identity/aws"
  version  = "2.8.1"
  for_each = local.identities

  name            = "${local.name}-${each.key}"
  use_name_prefix = false

  attach_aws_vpc_cni_policy                  = try(each.value.vpc_cni, false)
  aws_vpc_cni_enable_ipv4                    = true
  attach_aws_ebs_csi_policy                  = try(each.value.ebs_csi, false)
  attach_aws_cloudwatch_observability_policy = try(each.value.cloudwatch, false)
}

# Of the add-ons that infra/addons installs with Helm.
module "load_balancer_controller" {
  source  = "terraform-aws-modules/eks-pod-identity/aws"
  version = "2.8.1"

  name                            = "${local.name}-load-balancer-controller"
  use_name_prefix                 = false
  attach_aws_lb_controller_policy = true

  associations = {
    this = {
      cluster_name    = module.eks.cluster_name
      namespace       = "kube-system"
      service_account = "aws-load-balancer-controller"
    }
  }
}

module "cluster_autoscaler" {
  source  = "terraform-aws-modules/eks-pod-identity/aws"
  version = "2.8.1"

  name                             = "${local.name}-cluster-autoscaler"
  use_name_prefix                  = false
  attach_cluster_autoscaler_policy = true
  cluster_autoscaler_cluster_names = [local.name]

  associations = {
    this = {
      cluster_name    = module.eks.cluster_name
      namespace       = "kube-system"
      service_account = "cluster-autoscaler"
    }
  }
}

module "external_secrets" {
  source  = "terraform-aws-modules/eks-pod-identity/aws"
  version = "2.8.1"

  name                                  = "${local.name}-external-secrets"
  use_name_prefix                       = false
  attach_external_secrets_policy        = true
  external_secrets_create_permission    = false
  external_secrets_secrets_manager_arns = concat(local.secret_arns, [module.database.db_instance_master_user_secret_arn])
  external_secrets_kms_key_arns         = [module.kms.key_arn]

  associations = {
    this = {
      cluster_name    = module.eks.cluster_name
      namespace       = "external-secrets"
      service_account = "external-secrets"
    }
  }
}

module "loki" {
  source  = "terraform-aws-modules/eks-pod-identity/aws"
  version = "2.8.1"

  name                 = "${local.name}-loki"
  use_name_prefix      = false
  attach_custom_policy = true
  policy_statements = [
    { sid = "ListLogs", actions = ["s3:ListBucket"], resources = [module.logs.s3_bucket_arn] },
    {
      sid       = "KeepLogs"
      actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"]
      resources = ["${module.logs.s3_bucket_arn}/*"]
    },
    local.use_key_for_objects,
  ]

  associations = {
    this = {
      cluster_name    = module.eks.cluster_name
      namespace       = "monitoring"
      service_account = "loki"
    }
  }
}

module "cloudwatch_exporter" {
  source  = "terraform-aws-modules/eks-pod-identity/aws"
  version = "2.8.1"

  name                 = "${local.name}-cloudwatch-exporter"
  use_name_prefix      = false
  attach_custom_policy = true
  policy_statements = [{
    # Reading metrics cannot be narrowed to resources.
    sid       = "ReadMetrics"
    actions   = ["cloudwatch:GetMetricData", "cloudwatch:ListMetrics", "tag:GetResources"]
    resources = ["*"]
  }]

  associations = {
    this = {
      cluster_name    = module.eks.cluster_name
      namespace       = "monitoring"
      service_account = "cloudwatch-exporter"
    }
  }
}
