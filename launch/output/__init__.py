"""What a run shows and writes: terminal, run folder, figures, report."""
