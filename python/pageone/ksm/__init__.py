"""The kernel's KSM: read, drive, compare."""
