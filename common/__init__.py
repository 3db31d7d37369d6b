"""What every package needs: command line, files and whose they are, leases, seeds, workers."""
