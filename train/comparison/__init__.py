"""Runs compared: a table, a page, and the difference between two of them."""
