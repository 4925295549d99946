"""Data sources, their division among clients, and one client's images in memory."""
