"""`python -m distil_jax.cli`."""

import sys

from distil_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
