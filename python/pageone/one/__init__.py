"""ONE: exact deduplication of any binary objects."""
