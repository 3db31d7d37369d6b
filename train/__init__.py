"""A prepared data set -> a trained, evaluated network."""
