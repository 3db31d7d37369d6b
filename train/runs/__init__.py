"""The run folder: what a run was told, on what it trained, how far it is."""
