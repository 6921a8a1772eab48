"""Running a command somewhere else: TPU VMs, GKE, SkyPilot, SLURM, several processes on one machine.

None of our other code needs it. It asks the commands for what they would refuse, and `lpo plan` for what fits.
"""
