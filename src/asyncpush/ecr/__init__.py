"""The wire: ECR's operations on aioboto3, the part encoder, retries, and errors translated."""
