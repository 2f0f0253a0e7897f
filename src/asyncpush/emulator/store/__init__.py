"""The store: a catalog in SQLite, and blobs in OCI image layouts."""
