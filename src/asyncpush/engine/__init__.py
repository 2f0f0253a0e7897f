"""The engine: an image read once, cut into parts, and pushed into any number of repositories."""
