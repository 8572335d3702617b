"""Flax NNX encoders, the SVT slot in their layers, heads, and Hugging Face weights."""
