"""The machine that a process runs on: cores, memory, addresses, logs, sandbox, network namespace."""
