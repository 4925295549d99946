"""Assembly and command line. Importing it settles what torch and numpy read once, when they are first imported."""

import os

# Threads that wait for the next parallel loop spin for some ten microseconds and then sleep: long enough for the next
# layer to come (asleep at once, a small net takes twice its time), short enough for several ranks to share the cores
# (libgomp's own default is milliseconds). ACTIVE is there because libgomp otherwise hardly spins in a process in which
# two threads compute, as RPC's do; Intel's OpenMP would spin for ever under it, hence the last one.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "ACTIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
# torch's C++ side warns about every connection that a leaving member closes.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
# gRPC's C++ side writes a line for every stranger whose handshake fails.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# numpy's BLAS starts its threads when it is imported; a thread that is older than the sandbox stays outside it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
