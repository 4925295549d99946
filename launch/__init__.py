"""Assembly and command line. Importing it settles two things that torch reads once, when it is first imported."""

import os

# Threads that wait at a barrier sleep: several ranks share the cores, and a spinning rank slows the one that computes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# torch's C++ side warns about every connection that a leaving member closes.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
