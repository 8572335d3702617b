"""Scores: metrics, and a model's predictions over a split. Reads models and data; knows nothing of training."""
