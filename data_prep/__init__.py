"""Raw histopathology fields of view and point annotations -> a prepared data set."""
