"""A rank of a world of real processes that plays many small runs, one after the other: one torch import for all.

    python world.py RANK PORT CASES.json OUT      (rank 0 serves, the others are clients)

Every case is a dict of `RunOptions`; each rank writes OUT/<rank>.json: per case what it has to show.
"""

import inspect
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from launch import build
from launch.config import RunOptions
from runtime import calls, endpoints, transport
from runtime.entry import Door, Tokens
from runtime.exchange import OVER_RPC
from runtime.lockdown import Lockdown
from runtime.session import Member, NoKeepsakes, take_part
from runtime.transport import Transport, TransportConfig

KEY = bytes(range(32))
TOKEN = bytes(32)
python_calls: list[str] = []


def main() -> None:
    rank, port, cases, out = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    line = Transport(TransportConfig(host="127.0.0.1", port=port, rank=rank, timeout=60))
    name = transport.SERVER if rank == 0 else build.client_name(rank - 1)
    count_python_calls()
    line.join(name)
    joined = len(python_calls)
    results = []
    for number, case in enumerate(json.loads(cases.read_text())):
        options = RunOptions(**case).resolved()
        torch.set_num_threads(1)
        if rank > options.clients:
            results.append({})
        elif rank == 0:
            results.append(serve(options, line, number, out))
        else:
            results.append(take(options, line, number, rank - 1, name))
    (out / f"{rank}.json").write_text(json.dumps({"cases": results, "calls": python_calls[joined:]}))
    # Nobody leaves before everybody is done: the server's store is the clients' too.
    line.publish(f"done{rank}", "1")
    for other in range(int(os.environ["WORLD"])):
        line.hear(f"done{other}")
    line.leave()
    os._exit(0)


def count_python_calls() -> None:
    """Notes the name of every Python function that a peer makes this process run."""
    run = Lockdown.run_function

    def noted(wall, python_udf):
        python_calls.append(getattr(python_udf, "func", noted).__name__)
        return run(wall, python_udf)

    noted.__signature__ = inspect.signature(run)
    Lockdown.run_function = noted


def serve(options: RunOptions, line: Transport, number: int, out: Path) -> dict:
    images = build.build_images(options, options.clients)
    num_classes = len(images.source.classes)
    server = build.build_server(options, num_classes, torch.device("cpu"))
    run_dir = out / f"case{number}"
    run_dir.mkdir()
    coordinator = build.build_coordinator(
        options, server, run="run", run_dir=run_dir, num_classes=num_classes
    )
    from runtime.observers import NoRecorder

    coordinator.begin(False, lambda step: NoRecorder())
    endpoints.open_run(coordinator, Door("run", Tokens(shared=TOKEN), line))
    line.publish(f"open{number}", "1")
    endpoints.serve_run(calls.knock)
    endpoints.close_run()
    return {
        "weights_sha256": coordinator.weights_sha256(),
        "train_loss": coordinator.journal.train_loss,
        "scores": coordinator.journal.scores,
    }


def take(options: RunOptions, line: Transport, number: int, index: int, name: str) -> dict:
    images = build.build_images(options, options.clients)
    data = build.build_data(options, images, index)
    client = build.build_client(options, data, name, KEY, torch.device("cpu"), None)
    line.hear(f"open{number}")
    member = Member(client, OVER_RPC[options.exchange](line, TOKEN), NoKeepsakes())
    take_part(member, replace(options).agreement(len(data.classes)), name)
    return {"digests": client.digests()}


if __name__ == "__main__":
    main()
