"""What worker threads do to bytes: cut them into parts, hash them, compress them."""
