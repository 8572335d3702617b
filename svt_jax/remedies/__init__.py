"""Remedies for token uniformity other than SVT: on token matrices, attention maps and values, and as losses."""
