"""The plan of a migration: read, checked, resolved; and other tools' configurations made into one."""
