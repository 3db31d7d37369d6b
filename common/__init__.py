"""What every package needs: command line, files and who wrote them, leases, seeds, workers."""
