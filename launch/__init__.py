"""Running training somewhere else: TPU VMs, GKE, SLURM, several processes on one machine. Standard library and `lpo_jax.config` only."""
