"""Authentication: SigV4 signatures for the JSON API, tokens for /v2/."""
