"""The options of a run: what a person may ask for, what comes of it, and how it is written down."""
