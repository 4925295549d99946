"""``suture experiment``: the published study, and the question that a hospital asks first, redone run by run."""
