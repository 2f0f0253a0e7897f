"""``asyncpush bench``: measures pushes over layers, sizes and limits, and reports them as tables, JSON and pictures."""
