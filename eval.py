"""Evaluates: python eval.py glue --run DIR | --model PATH --task NAME; python eval.py report --run DIR;
python eval.py compare --config A.yaml --config B.yaml ... --seeds 0,1,2 | --runs DIR ... --output DIR."""

import sys

from svt_jax import cli

if __name__ == "__main__":
    sys.exit(cli.evaluate())
