"""Read-only reports of what merging would save."""
