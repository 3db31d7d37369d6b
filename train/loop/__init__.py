"""Training itself, from its start to its last step."""
