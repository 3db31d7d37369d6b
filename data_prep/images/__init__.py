"""Read, write and cut images and masks; paint masks and outlines."""
