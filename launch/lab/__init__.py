"""The lab: attacked runs on one machine, and their judge."""
