"""Comparisons, plots and reports from the files that runs and evaluations write."""
