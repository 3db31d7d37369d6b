"""Annotations, a format a file -> the points and areas of a field."""
