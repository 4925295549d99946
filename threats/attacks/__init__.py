"""The attacks, one paper one folder, and what they work with."""
