"""``asyncpush ecr``: ECR's layer operations with the options, output and exit statuses of ``aws ecr``."""
