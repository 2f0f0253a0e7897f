"""ECR's API through aioboto3: clients and credentials, repositories, rate limits, retries and typed errors."""
