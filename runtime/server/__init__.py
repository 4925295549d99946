"""The server: its model, the run's turns, its members, and what outlives its process."""
