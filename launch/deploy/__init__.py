"""What is done with a trained model: load it, predict with it, export it."""
