# Everything that infra/addons and the workflows need to know; addons reads it from this state.

output "facts" {
  description = "Facts of this environment, handed to the pods as the ConfigMap modelserve-cluster."
  value = {
    environment  = var.environment
    region       = var.region
    account_id   = var.account_id
    cluster_name = module.eks.cluster_name
    vpc_id       = module.vpc.vpc_id
    artifacts    = "s3://${module.artifacts.s3_bucket_id}"
    logs_bucket  = module.logs.s3_bucket_id
    registry     = split("/", module.repository["releases"].repository_url)[0]
    database = {
      host          = module.database.db_instance_address
      port          = module.database.db_instance_port
      master_secret = module.database.db_instance_master_user_secret_arn
      # Raised for new passwords: whoever holds them learns of it by this number.
      passwords_version = var.database_secrets_version
    }
    alarms_topic = module.alarms_topic.topic_arn
  }
}

output "cluster_endpoint" {
  description = "The Kubernetes API."
  value       = module.eks.cluster_endpoint
}

output "cluster_certificate_authority_data" {
  description = "Its certificate authority, base64."
  value       = module.eks.cluster_certificate_authority_data
}

output "flows_role_arn" {
  description = "For the annotation of the service account modelserve-flows in k8s/overlays."
  value       = module.workload["flows"].arn
}

output "server_role_arn" {
  description = "For the annotation of the service account modelserve-server in k8s/overlays."
  value       = module.workload["server"].arn
}

output "github_roles" {
  description = "Roles for the GitHub environments' variables."
  value       = { for name, role in module.github_role : name => role.arn }
}
