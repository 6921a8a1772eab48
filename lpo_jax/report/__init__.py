"""Pages about what was trained and decoded, each one file that needs nothing else."""
