"""What runs an experiment's settings: plan, pool of processes, results."""
