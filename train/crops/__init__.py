"""Prepared images -> microbatches of random crops, in an order keyed by seed and epoch."""
