"""The checks of ``asyncpush doctor``: what a push, a migration or a verification needs, tried without changing it."""
