"""What a client sets against a curious or hostile server: one paper, one file."""
