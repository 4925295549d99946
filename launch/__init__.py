"""Assembly and command line. Importing it settles what torch and numpy read once, when they are first imported."""

import os

# Threads that wait at a barrier sleep: several ranks share the cores, and a spinning rank slows the one that computes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# torch's C++ side warns about every connection that a leaving member closes.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
# numpy's BLAS starts its threads when it is imported; a thread that is older than the sandbox stays outside it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
