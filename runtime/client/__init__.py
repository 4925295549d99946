"""A client: its parts of the model, its half of a step, its evaluation."""
