"""The engine between hospitals: gRPC over mutual TLS 1.3, on one port of the server; a site only dials out.

No member needs to trust another. What arrives is bytes that this program reads itself (``frames``, ``codec``,
``checks``); a stranger gets a TLS handshake and no more.
"""
