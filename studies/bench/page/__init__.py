"""The page of benchmarks, a section a file."""
