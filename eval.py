"""Evaluates: python eval.py glue --run DIR | --model PATH --task NAME; eval.py sts --model PATH --data DIR --output FILE;
eval.py report --run DIR."""

import sys

from svt_jax import cli

if __name__ == "__main__":
    sys.exit(cli.evaluate())
