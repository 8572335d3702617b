"""Sentence embeddings, the maps that transform them, and the STS evaluation."""
