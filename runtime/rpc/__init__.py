"""The engine of one trust domain: torch RPC, remote references and distributed autograd.

Who reaches a rank's port can have torch's own operators computed there, in C++, and one of them reads memory beyond its
arguments. So everybody who reaches these ports is trusted: one machine, or one person's cluster. Between hospitals the
engine is ``suture.runtime.grpc``.
"""
