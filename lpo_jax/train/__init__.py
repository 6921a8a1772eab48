"""Training: state and step, loop, checkpoints, metrics, report."""
