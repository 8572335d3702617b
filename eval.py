"""Evaluates: python eval.py glue --run DIR | --model PATH --task NAME; eval.py sts --model PATH --data DIR --output FILE;
eval.py compare --config A.yaml --config B.yaml ... --seeds 0,1,2 | --runs DIR ... --output DIR; eval.py report --run DIR; eval.py export --run DIR --output FOLDER;
eval.py spectrum --run DIR | --model PATH --task NAME --output DIR."""

import sys

from svt_jax import cli

if __name__ == "__main__":
    sys.exit(cli.evaluate())
