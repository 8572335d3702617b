"""Remedies for token uniformity other than SVT, as pure functions on token matrices."""
