"""What a process takes from its operating system: sandbox, allocator, disk, main thread, private files."""
