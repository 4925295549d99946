"""A net's graph by torch.fx, made fit for cutting, and the places where one value crosses.

A place can be cut if after it one value is enough to go on and no parameter or buffer is used on both sides.
Sizes are values: where ``x.shape`` was read before and is used after, more than one crosses.

A module whose forward torch.fx cannot follow, such as one that branches on shapes, is taken whole: it is one step.
"""

from __future__ import annotations

import builtins
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from suture.models.plugins import first_line

Whole = dict[type[nn.Module], str]
"""Classes of modules that are taken whole, each with what torch.fx said of it."""


class _TensorProxy(fx.Proxy):
    """Stands for a tensor, and passes for one within `_proxies_are_tensors`."""


@contextmanager
def _proxies_are_tensors() -> Iterator[None]:
    """Lets ``isinstance(x, Tensor)`` be true of a proxy, or a forward that asks would be traced as it never runs.

    By the builtin: a ``__class__`` of the proxy's would also deceive torch's C++, which would read it as a tensor.
    """
    really = builtins.isinstance

    def is_instance(value: Any, kinds: Any) -> bool:
        return really(value, kinds) or (type(value) is _TensorProxy and issubclass(Tensor, kinds))

    vars(builtins)["isinstance"] = is_instance
    try:
        yield
    finally:
        vars(builtins)["isinstance"] = really


class _Tracer(fx.Tracer):
    """Remembers which modules end with which node, the innermost first, and in which one it failed."""

    def __init__(self, whole: Mapping[type[nn.Module], str]) -> None:
        super().__init__(param_shapes_constant=True)
        self.ends: dict[fx.Node, list[str]] = {}
        self.failed_in: tuple[type[nn.Module], str] | None = None
        self._whole = whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in self._whole or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _TensorProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        # fx asks first whether it is a tensor, and then whether it is a proxy.
        return a.node if type(a) is _TensorProxy else super().create_arg(a)

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
        try:
            output = super().call_module(m, forward, args, kwargs)
        except Exception as error:
            path = self.path_of_module(m)
            if self.failed_in is None and not self.is_leaf_module(m, path):
                self.failed_in = type(m), f"{path}: {first_line(error)}"
            raise
        if type(output) is _TensorProxy:
            self.ends.setdefault(output.node, []).append(self.path_of_module(m))
        return output


class Trace:
    """A net's graph in the mode that it is in, every node with its names.

    Args:
        net: what to trace.
        name: for messages.
        whole: which modules are one step; those that torch.fx cannot follow are added.
    """

    def __init__(self, net: nn.Module, name: str, whole: Whole) -> None:
        self._net_name, self._whole = name, whole
        tracer = _traced(net, name, whole)
        self.graph = tracer.graph
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
                found[self.name(node)] = node
        return found

    def why_no_crossing(self) -> str:
        """Names what crosses where the fewest values do."""
        inner = [node for _, node in self._between_weights()]
        if not inner:
            return self._why_nothing()
        narrowest = min(inner, key=lambda node: len(self._live[node]))
        batch = ", ".join(sorted(map(self.name, self._live[narrowest])))
        return (
            f"model {self._net_name} has no place where a single tensor crosses and no weight is used on both sides: "
            f"after {self.name(narrowest)}, the narrowest, there cross {batch}; put what lies between the forks "
            f"into a function under torch.fx.wrap{self._taken_whole()}"
        )

    def why_no_pair(self) -> str:
        """Why a segmentation net has no part that a server could have."""
        if not self._between_weights():
            return self._why_nothing()
        return (
            f"model {self._net_name} cannot be cut in three: no part of it takes one tensor, gives one, and leaves "
            "weights before and after it that are its own; let the decoder have its skips from layers at the client "
            f"only, or use another net{self._taken_whole()}"
        )

    def _why_nothing(self) -> str:
        return f"model {self._net_name} has weights in one place only: there is nothing to cut{self._taken_whole()}"

    def _taken_whole(self) -> str:
        """For messages: inside which modules there is no cut, and what torch.fx said of them."""
        if not self._whole:
            return ""
        said = "; ".join(f"{kind.__name__} ({why})" for kind, why in self._whole.items())
        return f"; torch.fx could not look into {said}, which would take a forward without branches on values"

    def _between_weights(self) -> list[tuple[int, fx.Node]]:
        """The nodes with weights before and after them, and their positions."""
        first = min((begin for begin, _ in self._spans), default=0)
        last = max((end for _, end in self._spans), default=0)
        return [(position, node) for position, node in enumerate(self._live) if first <= position < last]

    def name(self, node: fx.Node) -> str:
        """How a node is called where it is a cut."""
        return self.names[node][-1]


def _traced(net: nn.Module, name: str, whole: Whole) -> _Tracer:
    """Traces, again for each class of modules that turns out to be one step; draws no random number."""
    random_state = torch.get_rng_state()
    while True:
        tracer = _Tracer(whole)
        try:
            with _proxies_are_tensors():
                tracer.trace(net)
        except Exception as error:  # whatever a forward raises that is given no tensor but a proxy
            if tracer.failed_in is None:
                raise ValueError(
                    f"model {name} cannot be traced, and so not be cut: {first_line(error)}; torch.fx needs a forward "
                    "without branches and loops on values of tensors: move them into a module, which is then one "
                    "step, or into a function under torch.fx.wrap"
                ) from None
            kind, why = tracer.failed_in
            whole[kind] = why
            torch.set_rng_state(random_state)
        else:
            break
    if not torch.equal(random_state, torch.get_rng_state()):
        raise ValueError(
            f"model {name} draws random numbers that torch.fx does not see; draw them with a module "
            "(nn.Dropout) or from a tensor (torch.randn_like)"
        )
    return tracer


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
    returned = next(iter(reversed(graph.nodes)))
    output = the_one(returned.args[0])
    if isinstance(output, fx.Node):
        returned.args = (output,)
    else:
        raise ValueError(
            f"model {name}: forward must return one tensor, it returns a {type(output).__name__}; "
            "switch auxiliary outputs off"
        )


def the_one(output: Any) -> Any:
    """What a net returns, without the dict or list around it that holds nothing else, as torchvision's segmenters."""
    values = list(output.values()) if isinstance(output, Mapping) else output
    return values[0] if isinstance(values, list | tuple) and len(values) == 1 else output


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
        for tensor in tensors_of(node, net):
            spans[id(tensor)] = (spans.get(id(tensor), (position,))[0], position)
    return list(spans.values())


def tensors_of(node: fx.Node, net: nn.Module) -> list[Tensor]:
    """The parameters and buffers that a node uses."""
    if node.op == "call_module":
        module = net.get_submodule(str(node.target))
        return [*module.parameters(), *module.buffers()]
    if node.op == "get_attr":
        value: Any = net
        for name in str(node.target).split("."):
            value = getattr(value, name)
        return [value] if isinstance(value, Tensor) else []
    return []


def can_cross(value: Any, batch_size: int) -> bool:
    """Whether a value, found with a batch of shapes, can go over the wire: float32, one row an image."""
    return (
        isinstance(value, Tensor)
        and value.dtype is torch.float32
        and value.dim() > 0
        and value.shape[0] == batch_size
    )


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
