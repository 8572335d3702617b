"""Config, optimizer, mesh, step, loop, checkpoints, and the folder that a run writes."""
