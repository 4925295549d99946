"""An honest site that meets one hostile server after the other; says how each meeting ended.

    python victim.py ORDERS.json OUT.json

Everything of the site is the program's own: client, session, consortium, exchange, sandbox. A fresh client for each server; one process
for all, which must be alive at the end.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[3])]

import torch

import suture.models.registry as nets
from suture.launch import build
from suture.launch.host.sandbox_setup import enclose
from suture.launch.kits.kit import Kit
from suture.launch.options.options import AskedOptions
from suture.launch.output.client_folder import ClientFolder
from suture.launch.policy.policy import Policy
from suture.launch.site.search import Search
from suture.launch.site.terms import ask_terms
from suture.runtime.consortium.credentials import Credentials, Role
from suture.runtime.consortium.identity import Identity, Trust
from suture.runtime.consortium.roster import Roster
from suture.runtime.consortium.site import SiteConsortium
from suture.runtime.errors import SutureError
from suture.runtime.exchange.grpc import GrpcExchange
from suture.runtime.grpc.chunks import SMALL, Limits
from suture.runtime.grpc.client import GrpcClient, GrpcClientConfig
from suture.runtime.host.sandbox import Ports
from suture.runtime.participant.participant import Participant
from suture.runtime.session import take_part

KEY = bytes(range(32))


def main() -> None:
    orders, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    torch.set_num_threads(1)
    options = AskedOptions(**orders["options"], clients=1).resolved()
    data = build.build_data(options, build.build_site_images(options, "ward_a"), 0)
    kit = Kit.read(Path(orders["kit"]), Role.CLIENT)
    own = kit.credentials()
    # Asked in forks of this process, which must not have used gRPC.
    ended = {case: asked(own, int(port)) for case, port in orders["terms"].items()}
    limits, agreement = build.wire_limits(options, len(data.classes)), options.site_agreement(data.classes)
    normalisation = nets.model_entry(options.model).normalisation
    ports = {case: int(port) for case, port in orders["ports"].items()}
    enclose(options, out.parent, read=[kit.folder], ports=Ports(connect=tuple(ports.values())))
    for case, port in ports.items():
        consortium = SiteConsortium(Identity.of(own), Trust(own.authority, Roster(kit.roster)))
        signs = build.SiteOwn(KEY, consortium, None)
        client = build.build_client(options, data, "ward_a", KEY, torch.device("cpu"), None, signs)
        line = GrpcClient(
            GrpcClientConfig(
                host="127.0.0.1",
                port=port,
                credentials=own,
                limits=limits,
                lease=options.lease,
                line_timeout=3.0,
            )
        )
        exchange = GrpcExchange(line)
        observer = ClientFolder(
            options, normalisation, data.task, out.parent / "kept" / case.replace(" ", "_")
        )
        before, began = memory(), time.monotonic()
        try:
            take_part(Participant(client, exchange, observer), agreement)
            said = {"ended": "well", "said": ""}
        except SutureError as error:
            said = {"ended": type(error).__name__, "said": str(error)}
        except Exception as error:
            said = {"ended": f"DEFECT {type(error).__name__}", "said": str(error)}
        finally:
            exchange.close()
        ended[case] = said | {"grown": memory() - before, "seconds": time.monotonic() - began}
    out.write_text(json.dumps(ended))


def asked(own: Credentials, port: int) -> dict[str, Any]:
    """How asking a server for the run's options ended."""
    limits = Limits(batch=SMALL, handoff=SMALL, release=SMALL)
    line = GrpcClientConfig(
        host="127.0.0.1", port=port, credentials=own, limits=limits, lease=4.0, line_timeout=3.0
    )
    before, began = memory(), time.monotonic()
    try:
        Policy().screen(ask_terms(line, Search(f"127.0.0.1:{port}", 0.5)).agreement)
        said = {"ended": "well", "said": ""}
    except SutureError as error:
        said = {"ended": type(error).__name__, "said": str(error)}
    except Exception as error:
        said = {"ended": f"DEFECT {type(error).__name__}", "said": str(error)}
    return said | {"grown": memory() - before, "seconds": time.monotonic() - began}


def memory() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) * 1024


if __name__ == "__main__":
    main()
