"""A field -> its named variants."""
