"""What `make distill-demo` and `make codecode-demo` run beside the product, offline and on tiny models."""
