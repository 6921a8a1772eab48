"""Running training somewhere else: TPU VMs, GKE, SLURM, several processes on one machine.

Of our own code it needs `foundation` and `lpo_jax.config` only.
"""
