"""The registry API below ``/v2/`` (OCI distribution-spec): blobs, uploads, manifests and lists."""
