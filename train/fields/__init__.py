"""Whole fields of view: read, predicted over the ranks, counted; baselines."""
