"""A client that takes part in a run: its way to the server, its own people, and what it does around its turns."""
