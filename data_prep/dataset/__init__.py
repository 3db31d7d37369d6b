"""A prepared data set on disk: its description, its pixels, its nuclei."""
