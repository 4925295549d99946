"""A net's graph by torch.fx, made fit for cutting, and the places where one value crosses.

A place can be cut if after it one value is enough to go on and no parameter or buffer is used on both sides.
Sizes are values: where ``x.shape`` was read before and is used after, more than one crosses.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn

from suture.models.plugins import first_line


class _Tracer(fx.Tracer):
    """Remembers which modules end with which node, the innermost first."""

    def __init__(self) -> None:
        super().__init__(param_shapes_constant=True)
        self.ends: dict[fx.Node, list[str]] = {}

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        # As fx does with parameters: what is computed of a buffer alone is computed anew in each forward.
        if isinstance(attr_val, Tensor) and not isinstance(attr_val, nn.Parameter):
            for name, buffer in self.root.named_buffers():
                if buffer is attr_val:
                    if name not in parameter_proxy_cache:
                        parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
                    return parameter_proxy_cache[name]
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        if isinstance(output, fx.Proxy):
            self.ends.setdefault(output.node, []).append(self.path_of_module(m))
        return output


class Trace:
    """A net's graph in the mode that it is in, every node with its names."""

    def __init__(self, net: nn.Module, name: str) -> None:
        self._net_name = name
        tracer, random_state = _Tracer(), torch.get_rng_state()
        try:
            self.graph = tracer.trace(net)
        except Exception as error:  # whatever a forward raises that is given no tensor but a proxy
            raise ValueError(
                f"model {name} cannot be traced, and so not be cut: {first_line(error)}; torch.fx needs a forward "
                "without branches and loops on values of tensors: move them into a function under torch.fx.wrap"
            ) from None
        if not torch.equal(random_state, torch.get_rng_state()):
            raise ValueError(
                f"model {name} draws random numbers that torch.fx does not see; draw them with a module "
                "(nn.Dropout) or from a tensor (torch.randn_like)"
            )
        _check_signature(self.graph, name)
        _work_out_of_place(self.graph, net, name)
        _sink_constants(self.graph)
        self.names = _names(self.graph, tracer.ends)
        self._live = _live_after(self.graph)
        self._spans = _spans(self.graph, net)

    def crossings(self) -> dict[str, fx.Node]:
        """The nodes after which only they are needed, and no tensor of the net is used on both sides."""
        found = {}
        for position, node in self._between_weights():
            apart = not any(begin <= position < end for begin, end in self._spans)
            if self._live[node] == {node} and apart:
                found[self._name(node)] = node
        return found

    def why_no_crossing(self) -> str:
        """Names what crosses where the fewest values do."""
        inner = [node for _, node in self._between_weights()]
        if not inner:
            return f"model {self._net_name} has weights in one place only: there is nothing to cut"
        narrowest = min(inner, key=lambda node: len(self._live[node]))
        batch = ", ".join(sorted(map(self._name, self._live[narrowest])))
        return (
            f"model {self._net_name} has no place where a single tensor crosses and no weight is used on both sides: "
            f"after {self._name(narrowest)}, the narrowest, there cross {batch}; put what lies between the forks "
            "into a function under torch.fx.wrap"
        )

    def _between_weights(self) -> list[tuple[int, fx.Node]]:
        """The nodes with weights before and after them, and their positions."""
        first = min((begin for begin, _ in self._spans), default=0)
        last = max((end for _, end in self._spans), default=0)
        return [(position, node) for position, node in enumerate(self._live) if first <= position < last]

    def _name(self, node: fx.Node) -> str:
        return self.names[node][-1]


def _names(graph: fx.Graph, ends: dict[fx.Node, list[str]]) -> dict[fx.Node, list[str]]:
    """By node, the modules that end with it, the outermost last; else where and what it is: "encoder.add_1"."""
    # Of a module that is called twice, only the last call bears its name.
    last = {name: node for node, names in ends.items() for name in names}
    named = {}
    for node in graph.nodes:
        names = [name for name in ends.get(node, ()) if last[name] is node]
        # A child of an nn.Sequential is called by its number, which --cut takes for an index.
        if not names or names[-1].isdecimal():
            within = list(node.meta.get("nn_module_stack", {}))[-1:] if node.op != "call_module" else []
            name = ".".join([*within, node.name])
            names.append(node.name if name in last else name)
        named[node] = names
    return named


def _check_signature(graph: fx.Graph, name: str) -> None:
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        more = ", ".join(str(node.target) for node in inputs[1:]) or "nothing"
        raise ValueError(f"model {name}: forward must take the images alone, it also takes {more}")
    output = next(iter(reversed(graph.nodes))).args[0]
    if not isinstance(output, fx.Node):
        raise ValueError(
            f"model {name}: forward must return one tensor, it returns a {type(output).__name__}; "
            "switch auxiliary outputs off"
        )


def _work_out_of_place(graph: fx.Graph, net: nn.Module, name: str) -> None:
    """Makes in-place nodes give a new tensor, which whoever used the overwritten one afterwards then uses.

    A top that worked in place on what it was sent would change what an attack observed.
    """
    order = {node: position for position, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        target = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
        if node.op in ("call_method", "call_function") and target.endswith("_") and target[-2:] != "__":
            raise ValueError(f"model {name} works in place: {target} ({node.name}); write {target[:-1]}")
        if not _is_in_place(node, net):
            continue
        if node.op == "call_function":
            bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
            bound.arguments["inplace"] = False
            node.args, node.kwargs = bound.args, bound.kwargs
        written = node.all_input_nodes[0]
        written.replace_all_uses_with(node, delete_user_cb=lambda user, here=order[node]: order[user] > here)


def _is_in_place(node: fx.Node, net: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(getattr(net.get_submodule(str(node.target)), "inplace", False))
    if node.op != "call_function":
        return False
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a builtin, which tells no signature; none of them has this argument
        return False
    return bool(bound.arguments.get("inplace", False))


def _sink_constants(graph: fx.Graph) -> None:
    """Moves what does not depend on the images to just before its first use, so that it crosses no cut."""
    depends: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(source in depends for source in node.all_input_nodes):
            depends.add(node)
    for node in reversed(list(graph.nodes)):
        if node not in depends and node.users:
            min(node.users).prepend(node)  # nodes compare by their place


def _live_after(graph: fx.Graph) -> dict[fx.Node, set[fx.Node]]:
    """For each node, in order, the values that are there after it and still needed."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    last_use = {node: max((order[user] for user in node.users), default=-1) for node in order}
    live: dict[fx.Node, set[fx.Node]] = {}
    current: set[fx.Node] = set()
    for node, position in order.items():
        current = {value for value in current | {node} if last_use[value] > position}
        live[node] = current
    return live


def _spans(graph: fx.Graph, net: nn.Module) -> list[tuple[int, int]]:
    """Of each parameter and buffer in use, the positions of its first and its last use."""
    spans: dict[int, tuple[int, int]] = {}
    for position, node in enumerate(graph.nodes):
        for tensor in _tensors(node, net):
            spans[id(tensor)] = (spans.get(id(tensor), (position,))[0], position)
    return list(spans.values())


def _tensors(node: fx.Node, net: nn.Module) -> list[Tensor]:
    if node.op == "call_module":
        module = net.get_submodule(str(node.target))
        return [*module.parameters(), *module.buffers()]
    if node.op == "get_attr":
        value: Any = net
        for name in str(node.target).split("."):
            value = getattr(value, name)
        return [value] if isinstance(value, Tensor) else []
    return []


def between(graph: fx.Graph, begin: fx.Node | None, end: fx.Node | None) -> fx.Graph:
    """The computation after ``begin`` and up to ``end``; None is the input, and the output."""
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    has_begun = begin is None
    if begin is not None:
        copies[begin] = part.placeholder("x")
    for node in graph.nodes:
        if has_begun:
            copies[node] = part.node_copy(node, copies.__getitem__)
        has_begun = has_begun or node is begin
        if end is not None and node is end:
            part.output(copies[end])
            break
    return part
