"""How a step crosses the wire: between the protocol (session.py) and what carries it."""

from suture.runtime.exchange.autograd import AutogradExchange
from suture.runtime.exchange.exchange import Exchange
from suture.runtime.exchange.fused import FusedExchange
from suture.runtime.exchange.local import LocalExchange
from suture.runtime.exchange.rpc import RpcExchange

OVER_RPC: dict[str, type[RpcExchange]] = {"autograd": AutogradExchange, "fused": FusedExchange}

EXCHANGES = {
    "autograd": "torch RPC and distributed autograd between processes: the reference",
    "fused": "torch RPC, one explicit call a step (two where labels stay at home): no graph across the wire",
    "local": "all roles in one process, through the same protocol, bit for bit the same weights",
}

__all__ = ["EXCHANGES", "OVER_RPC", "AutogradExchange", "Exchange", "FusedExchange", "LocalExchange"]
