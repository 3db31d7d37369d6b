"""What a checkpoint holds, and how it is saved, verified and loaded."""
