"""`python -m lpo_jax.cli`."""

import sys

from lpo_jax.cli import main

sys.exit(main())
