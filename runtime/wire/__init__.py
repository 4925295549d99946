"""What crosses the wire: messages, their checks, their bytes."""
