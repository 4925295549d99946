"""Two ranks of plain torch RPC, without any wall: the first five attacks of the suite, which must succeed here.

python unwalled.py RANK PORT FOLDER        (0 is the victim, 1 attacks)
"""

import json
import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[3]), str(Path(__file__).parent)]

import attacks
from attacks import Target
from torch.distributed import rpc

rank, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
os.environ.update(
    MASTER_ADDR="127.0.0.1", MASTER_PORT=port, TP_SOCKET_IFNAME="lo", TORCH_CPP_LOG_LEVEL="FATAL"
)
options = rpc.TensorPipeRpcBackendOptions(rpc_timeout=30, _transports=["uv"], _channels=["basic"])
rpc.init_rpc(("victim", "hostile")[rank], rank=rank, world_size=2, rpc_backend_options=options)
if rank == 1:
    seen = {}
    for attack in attacks.FIRST_FIVE:
        name = attack.__name__
        target = Target(
            "victim",
            str(folder / "private" / "patient.txt"),
            str(folder / "victim" / name),
            str(folder / "outside" / name),
        )
        seen[name] = attacks.outcome(attack, target)["outcome"]
    print(json.dumps(seen), flush=True)
rpc.shutdown(timeout=10)
os._exit(0)
