"""`python -m svt_jax`: the same as the command `svt-jax`."""

import sys

from svt_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
