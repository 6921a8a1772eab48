"""What every other package stands on: errors a user can act on, files that are whole or not there, the console, the look of pages.

It imports nothing of ours, and neither JAX nor TensorFlow.
"""
