"""Sweeps: what is varied, the trials of a study, and what runs in a trial's task."""
