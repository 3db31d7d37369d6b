"""Counts of pixels and nuclei -> scores."""
