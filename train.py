"""Trains as a config says: python train.py [--config FILE.yaml] [--section.key VALUE ...]; no arguments: the demo."""

import sys

from svt_jax import cli

if __name__ == "__main__":
    sys.exit(cli.train(default_config="demo"))
