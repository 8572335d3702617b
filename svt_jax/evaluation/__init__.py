"""Evaluation of a trained model: metrics, scores over a split, the probe, GLUE submissions. It imports no training."""
