# A function of an image and all that Terraform can put around it here.

terraform {
  required_providers {
    aws = { source = "hashicorp/aws" }
  }
}

variable "endpoint" {}
variable "image" { default = "registry.example/f:1" }
variable "memory" { default = 128 }
variable "reserved" { default = 5 }
variable "team" { default = "a" }

provider "aws" {
  region                      = "us-east-1"
  access_key                  = "id"
  secret_key                  = "secret"
  skip_credentials_validation = true
  skip_requesting_account_id  = true
  skip_metadata_api_check     = true
  endpoints { lambda = var.endpoint }
}

resource "aws_lambda_function" "f" {
  function_name                  = "tf"
  package_type                   = "Image"
  image_uri                      = var.image
  role                           = "arn:aws:iam::000000000000:role/any"
  memory_size                    = var.memory
  reserved_concurrent_executions = var.reserved
  publish                        = true
  image_config { entry_point = ["/function"] }
  environment { variables = { GREETING = "hello" } }
  tags = { team = var.team }
}

resource "aws_lambda_alias" "live" {
  name             = "live"
  function_name    = aws_lambda_function.f.function_name
  function_version = aws_lambda_function.f.version
}

resource "aws_lambda_permission" "s3" {
  statement_id  = "s3"
  action        = "lambda:InvokeFunction"
  function_name = aws_lambda_function.f.function_name
  principal     = "s3.amazonaws.com"
  source_arn    = "arn:aws:s3:::b"
}

resource "aws_lambda_permission" "alias" {
  statement_id  = "s3"
  action        = "lambda:InvokeFunction"
  function_name = aws_lambda_function.f.function_name
  qualifier     = aws_lambda_alias.live.name
  principal     = "s3.amazonaws.com"
}

resource "aws_lambda_function_url" "open" {
  function_name      = aws_lambda_function.f.function_name
  authorization_type = "NONE"
}

resource "aws_lambda_function_event_invoke_config" "events" {
  function_name          = aws_lambda_function.f.function_name
  maximum_retry_attempts = 1
}
