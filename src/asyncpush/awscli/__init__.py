"""``asyncpush ecr``: ECR's layer operations with the options, the answers and the exit statuses of ``aws ecr``."""
