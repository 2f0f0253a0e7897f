"""What tests share: builders, servers that misbehave, judges. `tests/README.md` has the index."""
