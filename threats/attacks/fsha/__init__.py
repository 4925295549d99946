"""FSHA: a hostile server trains the clients' bottom into a feature space that it can decode."""
