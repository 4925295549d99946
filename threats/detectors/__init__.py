"""What a client sees of a hostile server in the gradients that come home: one paper, one file."""
