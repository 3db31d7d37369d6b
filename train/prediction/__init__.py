"""A network over images of any size -> masks, probabilities and nuclei."""
