module "eks" {
  source  = "terraform-aws-modules/eks/aws"
  version = "21.19.0"

  name               = local.name
  kubernetes_version = var.kubernetes_version

  vpc_id                   = module.vpc.vpc_id
  subnet_ids               = module.vpc.private_subnets
  control_plane_subnet_ids = module.vpc.intra_subnets

  endpoint_private_access      = true
  endpoint_public_access       = length(var.api_public_cidrs) > 0
  endpoint_public_access_cidrs = var.api_public_cidrs

  deletion_protection = var.environment == "production"
  authentication_mode = "API"
  upgrade_policy      = { support_type = "STANDARD" }
  zonal_shift_config  = { enabled = true }

  # For the service accounts of k8s/; add-ons use Pod Identity (identities.tf).
  enable_irsa = true

  # Secrets in etcd, with a key that the module makes.
  create_kms_key          = true
  enable_kms_key_rotation = true
  encryption_config       = { resources = ["secrets"] }

  enabled_log_types                      = ["api", "audit", "authenticator", "controllerManager", "scheduler"]
  cloudwatch_log_group_retention_in_days = var.log_days
  cloudwatch_log_group_kms_key_id        = module.kms.key_arn

  enable_cluster_creator_admin_permissions = false
  access_entries                           = local.access_entries

  addons = {
    coredns    = {}
    kube-proxy = {}
    vpc-cni = {
      before_compute = true
      # NetworkPolicy objects are only text unless somebody enforces them.
      configuration_values = jsonencode({
        enableNetworkPolicy = "true"
        env                 = { ENABLE_PREFIX_DELEGATION = "true", WARM_PREFIX_TARGET = "1" }
      })
      pod_identity_association = [{
        role_arn        = module.identity["vpc-cni"].iam_role_arn
        service_account = "aws-node"
      }]
    }
    eks-pod-identity-agent = { before_compute = true }
    aws-ebs-csi-driver = {
      pod_identity_association = [{
        role_arn        = module.identity["ebs-csi"].iam_role_arn
        service_account = "ebs-csi-controller-sa"
      }]
    }
    # Container logs into CloudWatch, beside Loki: they are there when the cluster is not.
    amazon-cloudwatch-observability = {
      configuration_values = jsonencode({
        containerLogs = { enabled = true }
      })
      pod_identity_association = [{
        role_arn        = module.identity["cloudwatch-agent"].iam_role_arn
        service_account = "cloudwatch-agent"
      }]
    }
  }

  eks_managed_node_groups = {
    for pool, group in var.node_groups : pool => {
      ami_type       = pool == "gpu" ? "AL2023_x86_64_NVIDIA" : "AL2023_x86_64_STANDARD"
      instance_types = group.instance_types
      capacity_type  = group.capacity
      min_size       = group.min
      max_size       = group.max
      desired_size   = group.desired

      # Labels and taints of an empty group reach the autoscaler through eks:DescribeNodegroup.
      labels = { (local.pool_label) = pool }
      taints = {
        for key in(pool == "gpu" ? [local.gpu_taint] : []) : "gpu" => { key = key, value = "true", effect = "NO_SCHEDULE" }
      }

      # vpc-cni has its own role; the node's role needs no right over network interfaces.
      iam_role_attach_cni_policy = false

      node_repair_config = { enabled = true }
      update_config      = { max_unavailable_percentage = 25 }

      metadata_options = {
        http_endpoint               = "enabled"
        http_tokens                 = "required"
        http_put_response_hop_limit = 1
      }

      block_device_mappings = {
        root = {
          device_name = "/dev/xvda"
          ebs = {
            volume_size           = group.disk_gib
            volume_type           = "gp3"
            encrypted             = true
            delete_on_termination = true
          }
        }
      }
    }
  }

  node_security_group_additional_rules = {
    # Istio's webhooks: the control plane calls istiod on the nodes.
    istio_webhooks = {
      description                   = "API server to istiod"
      protocol                      = "tcp"
      from_port                     = 15017
      to_port                       = 15017
      type                          = "ingress"
      source_cluster_security_group = true
    }
    # The module's own rules let nodes talk from port 1025 on; NGINX calls Istio's gateway on 80.
    mesh_gateway = {
      description = "Pods to the gateway of the mesh"
      protocol    = "tcp"
      from_port   = 80
      to_port     = 80
      type        = "ingress"
      self        = true
    }
  }
}

locals {
  access_entries = merge(
    {
      for arn in var.admin_role_arns : "admin-${basename(arn)}" => {
        principal_arn = arn
        policy_associations = {
          admin = {
            policy_arn   = "arn:aws:eks::aws:cluster-access-policy/AmazonEKSClusterAdminPolicy"
            access_scope = { type = "cluster" }
          }
        }
      }
    },
    {
      # infra/addons and kustomize are applied by the workflow after its approval.
      github-apply = {
        principal_arn = module.github_role["apply"].arn
        policy_associations = {
          admin = {
            policy_arn   = "arn:aws:eks::aws:cluster-access-policy/AmazonEKSClusterAdminPolicy"
            access_scope = { type = "cluster" }
          }
        }
      }
      github-plan = {
        principal_arn = module.github_role["plan"].arn
        policy_associations = {
          view = {
            policy_arn   = "arn:aws:eks::aws:cluster-access-policy/AmazonEKSAdminViewPolicy"
            access_scope = { type = "cluster" }
          }
        }
      }
    },
  )
}
