"""Judging an attack: metrics, a classifier that reads reconstructions, a replayed client."""
