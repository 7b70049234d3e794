# Read by infra/check. The AWS plugin knows instance types, engine versions and the like.
config {
  call_module_type = "none"
}

plugin "terraform" {
  enabled = true
  preset  = "recommended"
}

plugin "aws" {
  enabled = true
  version = "0.48.0"
  source  = "github.com/terraform-linters/tflint-ruleset-aws"
}

rule "terraform_documented_variables" {
  enabled = true
}

rule "terraform_documented_outputs" {
  enabled = true
}

rule "terraform_naming_convention" {
  enabled = true
}

# Providers of addons are configured for Helm's and Kubernetes' sake; aws only guards the account.
rule "terraform_unused_required_providers" {
  enabled = true
}
