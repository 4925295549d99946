"""Nets of others, by name: ``torchvision:NAME``, and plug-ins (`suture.models.plugins`), each a factory.

They are cut wherever a single tensor crosses (`suture.models.traced`). Whether a net is a classifier or a segmenter,
and whether its images are RGB or grey, shows when it runs on shapes. A part's initial weights are those that the net's
own construction draws, from the generator that the part is given.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torchvision  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor, nn

from suture.models import plugins
from suture.models.entry import ModelEntry
from suture.models.plugins import first_line
from suture.models.traced import LARGEST_SIZE, TracedNet
from suture.models.tracing import the_one

KIND, TORCHVISION = "model", "torchvision:"
FORMS = (f"{TORCHVISION}NAME", plugins.FORM)
"""How such nets are named."""

Factory = Callable[[int], nn.Module]
_NUM_OUTPUTS = 2  # of the net that is built to see how it behaves
_LONG_RUN = 32  # so many sizes in a row that work: no largest size is looked for
_NO_AUXILIARY = {name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")}


def is_foreign(name: str) -> bool:
    """Whether ``name`` is that of a net of others; imports nothing. The registry's own names come first."""
    return name.startswith(TORCHVISION) or plugins.is_outside(KIND, name)


@functools.cache
def foreign_entry(name: str) -> ModelEntry:
    """The entry of a net of others; a user's module is imported, and the net built and traced on shapes.

    Raises:
        ValueError: torchvision has no such net, no such plug-in is found, or what it makes cannot be cut.
    """
    if name.startswith(TORCHVISION):
        factory, paper = _torchvision_factory(name), "see torchvision's documentation of the net"
    else:
        factory, paper = _own_factory(name), "the user's own"
    with torch.device("meta"):
        net = TracedNet(_built(name, factory, _NUM_OUTPUTS), name)
    is_segmenter, is_rgb = net.task == "segmentation", net.in_channels == 3
    return ModelEntry(
        name=name,
        description=f"{'segmenter' if is_segmenter else 'classifier'}, cut wherever a single tensor crosses",
        paper=paper,
        task=net.task,
        labels=("home",) if is_segmenter else ("shared", "home"),
        normalisation="imagenet" if is_rgb else "symmetric",
        in_channels=net.in_channels,
        num_outputs=1 if is_segmenter else _NUM_OUTPUTS,
        width=None,
        min_image_size=1,
        image_size_multiple=1,
        stride=0,
        build_net=lambda num_outputs, width: TracedNet(_built(name, factory, num_outputs), name),
        points=lambda net: _traced(net).points,
        cut_net=lambda net, point, labels: _traced(net).cut(point, labels),
        initialise=lambda part, num_outputs: _redraw(part, _built(name, factory, num_outputs)),
        check_image=lambda px, batch_size: _check_image(name, factory, px, batch_size),
    )


def _traced(net: nn.Module) -> TracedNet:
    assert isinstance(net, TracedNet), "build_net gives no other"
    return net


def _torchvision_factory(name: str) -> Factory:
    kind = name.removeprefix(TORCHVISION)
    segmenters = torchvision.models.list_models(module=torchvision.models.segmentation)
    known = [*torchvision.models.list_models(module=torchvision.models), *segmenters]
    if kind not in known:
        raise ValueError(f"model must be {TORCHVISION}NAME with NAME one of {', '.join(known)}, got {name!r}")
    # Without a word about its backbone torchvision downloads one.
    extra = {"weights_backbone": None} if kind in segmenters else _NO_AUXILIARY.get(kind, {})
    return lambda num_outputs: torchvision.models.get_model(  # type: ignore[no-any-return]
        kind, weights=None, num_classes=num_outputs, **extra
    )


def _own_factory(name: str) -> Factory:
    factory = plugins.load(KIND, name)
    if not callable(factory):
        raise ValueError(
            f"model {name}: {plugins.place(KIND, name)[1]} must be a factory that takes the number of outputs, got "
            f"{type(factory).__name__}"
        )
    made: Factory = factory
    return made


def _built(name: str, factory: Factory, num_outputs: int) -> nn.Module:
    """The net as its factory makes it, on torch's default device."""
    on_meta = torch.empty(0).device.type == "meta"
    try:
        try:
            net = factory(num_outputs)
        except (RuntimeError, NotImplementedError):
            if not on_meta:
                raise
            # Some nets compute with numbers from tensors while they are built, which have none on meta.
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                net = factory(num_outputs)
            net = net.to("meta")
    except Exception as error:  # whatever the factory raises
        raise ValueError(
            f"model {name}: its factory failed for {num_outputs} outputs: {first_line(error)}"
        ) from None
    if not isinstance(net, nn.Module):
        raise ValueError(f"model {name}: its factory must return an nn.Module, got {type(net).__name__}")
    return net


def _redraw(part: nn.Module, fresh: nn.Module) -> None:
    """Takes a part's weights from a whole net that was drawn for it alone."""
    state = fresh.state_dict()
    part.load_state_dict({key: state[key] for key in part.state_dict()})


@functools.cache
def _check_image(name: str, factory: Factory, px: int, batch_size: int | None) -> None:
    """Tries a step's forward on shapes; on failure looks for the nearest sizes that would do.

    Raises:
        ValueError: the net does not take such images or batches.
    """
    with torch.device("meta"):
        net = _built(name, factory, _NUM_OUTPUTS).train()
    problem = _problem(name, net, px, batch_size or 2)
    if problem is None:
        return
    if batch_size == 1 and _problem(name, net, px, 2) is None:
        raise ValueError(
            f"batch size must be at least 2 for {name} at {px} px, got 1: {problem}; use --batch-size 2 or more"
        )
    below = next((size for size in range(px - 1, 0, -1) if _problem(name, net, size, 2) is None), None)
    farthest = LARGEST_SIZE if below is None else 2 * px
    above = next((size for size in range(px + 1, farthest + 1) if _problem(name, net, size, 2) is None), None)
    if below is None and above is None:
        raise ValueError(f"model {name} trains on images of no size up to {LARGEST_SIZE} px: {problem}")
    if below is None and above is not None:
        last = above
        while last < above + _LONG_RUN and _problem(name, net, last + 1, 2) is None:
            last += 1
        if last == above + _LONG_RUN:
            bound, remedy = f"be at least {above}", f"{above} or more"
        else:
            bound, remedy = (f"be {above}" if last == above else f"lie in {above}..{last}"), str(last)
    else:
        sizes = " or ".join(str(size) for size in (below, above) if size is not None)
        bound, remedy = f"be {sizes}", sizes
    raise ValueError(f"image size must {bound} for {name}, got {px}; use --image-size {remedy}")


@torch.no_grad()
def _problem(name: str, net: nn.Module, px: int, batch_size: int) -> str | None:
    """Why the net, on meta, does not train on such a batch; None if it does.

    Raises:
        ValueError: it gives something else than logits.
    """
    entry = foreign_entry(name)
    try:
        logits = the_one(net(torch.zeros(batch_size, entry.in_channels, px, px, device="meta")))
    except Exception as error:  # whatever a net raises on images that it cannot take
        return first_line(error)
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    by_image = (batch_size, _NUM_OUTPUTS)
    by_pixel = (*by_image, px, px)
    if shape == (by_image if entry.task == "classification" else by_pixel):
        return None
    if entry.task == "segmentation" and shape[:2] == by_image:
        return f"its masks have {' x '.join(map(str, shape[2:]))} pixels"
    raise ValueError(
        f"model {name} must give one logit an image and class, {by_image} for {batch_size} images and {_NUM_OUTPUTS} "
        f"classes, or one a pixel and class, {by_pixel}, got {shape}"
    )
