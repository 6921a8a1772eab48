"""`lpo plan`: what a run needs and how fast it can be on a TPU slice, asked of the TPU compiler on any CPU machine."""
