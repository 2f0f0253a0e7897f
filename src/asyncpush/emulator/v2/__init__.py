"""What is behind ``/v2/`` (OCI distribution-spec): blobs, uploads, manifests and lists of a registry on a store."""
