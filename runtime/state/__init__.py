"""Model state that outlives a turn: hand-offs, checkpoints, averages."""
