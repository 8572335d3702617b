"""Speed and memory of svt_jax beside what it cannot avoid; each module is a script: python -m benchmarks.<name>."""
