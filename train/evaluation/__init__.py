"""A run measured on whole fields, and the report of it."""
