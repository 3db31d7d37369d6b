"""The case that a file name names, and how to say so where none does."""
