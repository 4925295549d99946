"""Kits: certificates, requests, revocation, and a machine's standing in its consortium."""
