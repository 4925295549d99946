"""What is written down while a run trains."""
