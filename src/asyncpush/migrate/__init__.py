"""Many images: what is to be migrated (the plan), and what of it has been done."""
