"""One training run from setup to results: optimizer, step, loop, callbacks, logs; and grids of runs."""
