"""The user of a docker-registry that wants a password."""

from __future__ import annotations

USER, PASSWORD = "reader", "to:read"
#: Of the password above, by bcrypt with its least cost.
HTPASSWD = "reader:$2b$04$ArHcWDLmu9B8eGYS3lnYkuZuymHZGBVKgpYAQwm8vvcGf3ZCOoS8W"
