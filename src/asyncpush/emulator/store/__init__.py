"""What the emulator keeps: a catalog in SQLite, and blobs as OCI image layouts."""
