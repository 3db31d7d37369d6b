"""What a cluster is, and what jobs ask of it: profiles, limits, the commands of Slurm."""
