"""ECR's and ECR Public's JSON API: one module for each family of operations."""
