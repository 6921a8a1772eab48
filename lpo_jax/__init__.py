"""lpo-jax: teach code language models to write secure code, on JAX and Flax."""
