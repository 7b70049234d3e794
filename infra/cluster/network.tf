# Three zones; public subnets for load balancers and NAT, private ones for nodes, intra ones (no way out) for
# the control plane, the database and the cache.
module "vpc" {
  source  = "terraform-aws-modules/vpc/aws"
  version = "6.6.0"

  name = local.name
  cidr = var.vpc_cidr
  azs  = var.zones

  # Pods take addresses of the private subnets: 4 094 a zone.
  private_subnets = [for index in range(3) : cidrsubnet(var.vpc_cidr, 4, index)]
  public_subnets  = [for index in range(3) : cidrsubnet(var.vpc_cidr, 8, 48 + index)]
  intra_subnets   = [for index in range(3) : cidrsubnet(var.vpc_cidr, 8, 52 + index)]

  enable_nat_gateway     = true
  single_nat_gateway     = !var.nat_per_zone
  one_nat_gateway_per_az = var.nat_per_zone

  # The load balancer controller finds its subnets by these tags.
  public_subnet_tags  = { "kubernetes.io/role/elb" = "1" }
  private_subnet_tags = { "kubernetes.io/role/internal-elb" = "1" }

  map_public_ip_on_launch       = false
  manage_default_security_group = true
  manage_default_network_acl    = false

  enable_flow_log                                 = true
  create_flow_log_cloudwatch_log_group            = true
  create_flow_log_cloudwatch_iam_role             = true
  flow_log_traffic_type                           = "REJECT"
  flow_log_cloudwatch_log_group_retention_in_days = var.log_days
  flow_log_cloudwatch_log_group_kms_key_id        = module.kms.key_arn
}

module "vpc_endpoints" {
  source  = "terraform-aws-modules/vpc/aws//modules/vpc-endpoints"
  version = "6.6.0"

  vpc_id     = module.vpc.vpc_id
  subnet_ids = module.vpc.private_subnets

  create_security_group      = true
  security_group_name_prefix = "${local.name}-endpoints-"
  security_group_description = "Private addresses of AWS services"
  security_group_rules = {
    https_from_vpc = {
      description = "HTTPS from the VPC"
      cidr_blocks = [var.vpc_cidr]
    }
  }

  endpoints = merge(
    {
      # Image layers come from S3: with this they cost no NAT traffic.
      s3 = {
        service         = "s3"
        service_type    = "Gateway"
        route_table_ids = concat(module.vpc.private_route_table_ids, module.vpc.intra_route_table_ids)
        tags            = { Name = "${local.name}-s3" }
      }
    },
    {
      for service in var.interface_endpoints : service => {
        service             = service
        private_dns_enabled = true
        tags                = { Name = "${local.name}-${replace(service, ".", "-")}" }
      }
    },
  )
}
