"""What benchmarks measure on: processes, networks, sites made for the purpose."""
