"""The engine: reads an image once, cuts its layers into parts, and pushes them to any number of repositories."""
