"""Put preparation, training and evaluation on a Slurm cluster, and bring them back."""
