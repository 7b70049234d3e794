region              = "eu-central-1"
state_bucket        = "modelserve-production-terraform-222222222222"
heartbeat_url       = "https://heartbeat.example.com/modelserve-production"
repository_url      = "https://github.com/example/modelserveai"
replicas            = 3
log_retention_hours = 720
