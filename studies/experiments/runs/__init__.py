"""One run of an experiment: its job, its setting, its sizes."""
