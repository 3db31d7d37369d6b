"""What was submitted for a run, what has happened to it since, and which jobs it has."""
