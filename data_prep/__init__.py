"""Turn raw histopathology fields of view and their annotations into a prepared data set."""
