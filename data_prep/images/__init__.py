"""Image files <-> RGB uint8: whole, in tiles, with masks drawn."""
