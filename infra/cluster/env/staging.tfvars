environment = "staging"
account_id  = "111111111111"
region      = "eu-central-1"

vpc_cidr     = "10.10.0.0/16"
zones        = ["eu-central-1a", "eu-central-1b", "eu-central-1c"]
nat_per_zone = false

api_public_cidrs = []
admin_role_arns  = ["arn:aws:iam::111111111111:role/platform-admin"]

node_groups = {
  # The add-ons ask for some 5 CPUs and 12 GiB, what runs on every node for another 0.8 and 0.7 a node.
  system = { instance_types = ["m7i.xlarge"], min = 2, max = 4, desired = 2, disk_gib = 60 }
  cpu    = { instance_types = ["m7i.xlarge", "m6i.xlarge"], min = 1, max = 6, desired = 1, disk_gib = 100, capacity = "SPOT" }
  gpu    = { instance_types = ["g5.xlarge", "g6.xlarge"], min = 0, max = 2, desired = 0, disk_gib = 150 }
}

database = {
  instance_class = "db.t4g.medium"
  storage        = 50
  max_storage    = 200
  multi_az       = false
  backup_days    = 7
  protected      = false
}

cache = { node_type = "cache.t4g.small", nodes = 1 }

log_days           = 30
alarm_email        = "platform-staging@example.com"
monthly_budget_usd = 1200

github_repository = "example/modelserveai"
