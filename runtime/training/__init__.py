"""Losses and scores, optimizers, random numbers."""
