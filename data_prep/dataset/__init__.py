"""Read and write a prepared data set: its description, its pixels, its nuclei."""
