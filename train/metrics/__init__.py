"""Scores from counts of pixels and nuclei."""
