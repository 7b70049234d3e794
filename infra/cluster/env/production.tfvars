environment = "production"
account_id  = "222222222222"
region      = "eu-central-1"

vpc_cidr     = "10.20.0.0/16"
zones        = ["eu-central-1a", "eu-central-1b", "eu-central-1c"]
nat_per_zone = true

api_public_cidrs = []
admin_role_arns  = ["arn:aws:iam::222222222222:role/platform-admin"]

node_groups = {
  system = { instance_types = ["m7i.xlarge"], min = 3, max = 6, desired = 3, disk_gib = 100 }
  cpu    = { instance_types = ["m7i.2xlarge", "m6i.2xlarge"], min = 3, max = 40, desired = 3, disk_gib = 150 }
  gpu    = { instance_types = ["g5.xlarge", "g6.xlarge"], min = 0, max = 8, desired = 0, disk_gib = 200 }
}

database = {
  instance_class = "db.m7g.large"
  storage        = 200
  max_storage    = 1000
  multi_az       = true
  backup_days    = 30
  protected      = true
}

cache = { node_type = "cache.m7g.large", nodes = 2 }

log_days           = 90
alarm_email        = "platform@example.com"
monthly_budget_usd = 5000

github_repository = "example/modelserveai"
