"""Processes that train together: who they are, what they exchange, which one is missing."""
