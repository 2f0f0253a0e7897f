"""What all clients of HTTP share: when a request is sent again, and what the environment names."""
