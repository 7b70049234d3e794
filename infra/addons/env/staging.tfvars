region              = "eu-central-1"
state_bucket        = "modelserve-staging-terraform-111111111111"
heartbeat_url       = "https://heartbeat.example.com/modelserve-staging"
repository_url      = "https://github.com/example/modelserveai"
replicas            = 2
log_retention_hours = 168
