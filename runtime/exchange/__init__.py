"""How a step crosses the wire: the seam between the protocol (session.py) and what carries it."""

from runtime.exchange.autograd import AutogradExchange
from runtime.exchange.local import LocalExchange
from runtime.exchange.seam import Exchange

EXCHANGES = {
    "autograd": "torch RPC and distributed autograd between processes: the reference",
    "local": "all roles in one process, through the same protocol, bit for bit the same weights",
}

__all__ = ["EXCHANGES", "AutogradExchange", "Exchange", "LocalExchange"]
