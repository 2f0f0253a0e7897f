"""The emulator's page for browsers at ``/``: what it holds and what it does, live, for reading only."""
