"""Benchmarks: ``suture bench NAME`` measures and writes a page of docs/."""
