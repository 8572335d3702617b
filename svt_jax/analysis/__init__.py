"""Pictures and reports from the files that runs and evaluations leave."""
