"""Folders of several runs: which runs they hold, and what each is trained with."""
