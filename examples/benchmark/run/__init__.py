"""Run the jobs of a plan: train backbones, run cells, in one process or several."""
