"""Wire formats: how far a tensor comes back from what it was, that draws repeat, and what is refused on arrival.

Oracle: each format's definition, written out, and tables of payloads wrong in one field each.
"""

import dataclasses
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suture.launch.options.options import RunOptions
from suture.runtime.errors import ConfigError, WireError
from suture.runtime.training.randomness import Randomness
from suture.runtime.wire.checks import TensorSpec
from suture.runtime.wire.compression import FORMATS, Packer, parse_format
from suture.runtime.wire.messages import Packed

KEY = bytes(range(32))
WIRES = ["fp32", "bf16", "fp16", "int8", "topk:0.3"]
SHAPES = [(4, 6, 5, 5), (4, 10), (3, 7, 8)]


def draws(seed=0):
    return lambda: torch.Generator().manual_seed(seed)


def numbers(shape, seed=0):
    """Channels that differ in size by orders of magnitude, a third of them 0 as after a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 10.0 ** torch.arange(shape[1]).sub(3).clamp(-3, 3).view(1, -1, *[1] * (len(shape) - 2))
    tensor = torch.randn(shape, generator=generator) * sizes
    return tensor * (torch.rand(shape, generator=generator) > 0.3)


def there_and_back(wire, tensor, seed=0):
    form = parse_format(wire)
    return form.decode(form.encode(tensor, draws(seed)), TensorSpec.like(tensor), "client0", "smashed")


def test_every_format_is_tested():
    """Oracle: the registry."""
    assert {wire.removesuffix(":0.3") for wire in WIRES} == FORMATS.keys()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("wire", WIRES)
def test_a_tensor_comes_back_within_the_bounds_of_its_format(wire, shape):
    """Oracle: rounding to the nearest, to the next, and the sorted magnitudes."""
    tensor = numbers(shape)
    back = there_and_back(wire, tensor)
    assert back.dtype is torch.float32 and back.shape == tensor.shape
    error = (back - tensor).abs()
    if wire == "fp32":
        assert torch.equal(back, tensor)
    elif wire in ("bf16", "fp16"):
        assert (error <= tensor.abs() * 2.0 ** (-8 if wire == "bf16" else -11) + 2.0**-25).all()
    elif wire == "int8":
        alone = (0, *range(2, len(shape))) if len(shape) > 2 else tuple(range(len(shape)))
        step = tensor.abs().amax(alone, keepdim=True) / 127
        assert (error < step * 1.001).all() and (back[tensor == 0] == 0).all()
    else:
        for row, kept in zip(tensor.flatten(1), back.flatten(1), strict=True):
            count = math.ceil(Fraction(3, 10) * row.numel())
            least = row.abs().sort(descending=True).values[count - 1]
            assert torch.equal(kept, torch.where(row.abs() >= least, row, 0.0))


def test_a_format_takes_the_bytes_that_it_promises():
    """Oracle: by hand, for 4 images of 6 channels of 25 values; topk keeps 45 of 150."""
    tensor = numbers((4, 6, 5, 5))
    sizes = {wire: parse_format(wire).encode(tensor, draws()).nbytes for wire in WIRES}
    assert sizes == {
        "fp32": 2400,
        "bf16": 1200,
        "fp16": 1200,
        "int8": 600 + 6 * 4,
        "topk:0.3": 4 * 45 * (4 + 4),
    }


def test_rounding_at_random_has_the_value_as_its_mean():
    """Oracle: the mean of 4,000 draws within five of its standard errors (a draw's deviation is half a step at most)."""
    tensor, count = numbers((2, 3, 2, 2), seed=1), 4000
    wide = tensor.repeat(count, 1, 1, 1)
    back = there_and_back("int8", wide).view(count, *tensor.shape)
    step = tensor.abs().amax((0, 2, 3), keepdim=True) / 127
    assert ((back.mean(0) - tensor).abs() <= 5 * 0.5 * step / math.sqrt(count) + 1e-6 * tensor.abs()).all()


@pytest.mark.parametrize("value", [0.0, 1e-45, -1e-38, 3.0, -1e38])
def test_int8_takes_a_tensor_that_is_all_one_value(value):
    """Oracle: the value; below 1e-43 a step is too small for float32 and 0 comes back."""
    back = there_and_back("int8", torch.full((2, 3, 4, 4), value))
    assert torch.allclose(back, torch.tensor(0.0 if abs(value) < 1e-43 else value), rtol=1e-4)


@pytest.mark.parametrize("wire", ["int8", "topk:0.3", "fp16"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_cannot_hide_in_a_format(wire, value):
    """Oracle: the refusal, at the format or at the check that follows it."""
    tensor = numbers((4, 6, 5, 5))
    tensor[2, 1, 3, 3] = value
    with pytest.raises(WireError, match="NaN or infinite"):
        TensorSpec.like(tensor).check(there_and_back(wire, tensor), "client0", "smashed")


def test_a_value_beyond_fp16_is_refused_with_the_remedy():
    """Oracle: the words; bf16 takes it."""
    tensor = torch.full((1, 2, 2, 2), 70000.0)
    with pytest.raises(WireError, match="fp16 ends at 65504, --wire bf16 does not"):
        there_and_back("fp16", tensor)
    assert torch.allclose(there_and_back("bf16", tensor), tensor, rtol=2**-8)


def test_topk_of_everything_is_fp32():
    """Oracle: the tensor, bit for bit."""
    tensor = numbers((4, 6, 5, 5))
    assert torch.equal(there_and_back("topk:1", tensor), tensor)


def test_topks_gradient_is_that_of_what_was_computed():
    """Oracle: autograd through the mask."""
    form, tensor = parse_format("topk:0.3"), numbers((4, 6, 5, 5)).requires_grad_()
    spec = TensorSpec.like(tensor)
    packed = form.encode(tensor.detach(), draws())
    sparse = form.decode(packed, spec, "client0", "smashed").requires_grad_()
    (full,) = torch.autograd.grad(sparse.sin().sum(), sparse)
    sent = form.encode(full, draws(), of=packed)
    assert sent.shape == (4, 45)
    (expected,) = torch.autograd.grad(
        (tensor * (sparse.detach() != 0)).sin()[sparse.detach() != 0].sum(), tensor
    )
    back = form.decode(sent, spec, "server", "gradient", of=packed)
    kept = torch.zeros(4, 150).scatter_(1, packed.beside.long(), 1.0).view_as(tensor)
    assert torch.equal(back * (sparse != 0), expected) and (back[kept == 0] == 0).all()


def test_a_draw_is_settled_by_key_and_place():
    """Oracle: a second end with the same key repeats it; another place, purpose or key rounds otherwise."""
    tensor = numbers((4, 6, 5, 5))

    def packed(key=KEY, what="smashed", *place):
        return Packer("int8", Randomness(key, 0)).pack(tensor, what, *(place or (1, "client0", 0))).values

    assert torch.equal(packed(), packed())
    for other in (packed(bytes(32)), packed(KEY, "gradient"), packed(KEY, "smashed", 1, "client0", 1)):
        assert not torch.equal(packed(), other)


# What is refused -----------------------------------------------------------------------------------

SPEC = TensorSpec((3, 2, 2), torch.float32, 4)
INT8 = Packed(torch.ones(4, 3, 2, 2, dtype=torch.int8), torch.ones(3))
TOPK = Packed(torch.ones(4, 6), torch.arange(6, dtype=torch.int32).repeat(4, 1))  # topk:0.5 keeps 6 of 12


def _set(tensor, place, value):
    tensor = tensor.clone()
    tensor[place] = value
    return tensor


MALFORMED = {
    "int8 a tensor": ("int8", torch.ones(4, 3, 2, 2), "smashed: expected a Packed tensor, got Tensor"),
    "int8 nothing": ("int8", None, "smashed: expected a Packed tensor, got NoneType"),
    "int8 floats": ("int8", {"values": torch.ones(4, 3, 2, 2)}, "smashed: expected torch.int8"),
    "int8 shape": (
        "int8",
        {"values": INT8.values[:, :2]},
        r"smashed: expected shape \(1..4, 3, 2, 2\), got \(4, 2, 2, 2\)",
    ),
    "int8 too many": ("int8", {"values": INT8.values.repeat(2, 1, 1, 1)}, r"smashed: expected shape"),
    "int8 none": ("int8", {"values": INT8.values[:0]}, r"smashed: expected shape"),
    "int8 -128": (
        "int8",
        {"values": _set(INT8.values, (0, 0, 0, 0), -128)},
        "smashed: expected values in -127..127",
    ),
    "int8 no scale": ("int8", {"beside": None}, "smashed.scale: expected a tensor, got NoneType"),
    "int8 one scale": ("int8", {"beside": torch.ones(1)}, "smashed.scale: expected 3 numbers above 0, got 1"),
    "int8 scale of rank 2": (
        "int8",
        {"beside": torch.ones(3, 1)},
        r"smashed.scale: expected shape \(1..3\)",
    ),
    "int8 scale float64": (
        "int8",
        {"beside": torch.ones(3).double()},
        "smashed.scale: expected torch.float32",
    ),
    "int8 scale 0": ("int8", {"beside": _set(torch.ones(3), 1, 0.0)}, "smashed.scale: expected 3 numbers"),
    "int8 scale -1": ("int8", {"beside": -torch.ones(3)}, "smashed.scale: expected 3 numbers above 0"),
    "int8 scale nan": ("int8", {"beside": _set(torch.ones(3), 1, math.nan)}, "smashed.scale: 1 of 3 values"),
    "int8 scale inf": ("int8", {"beside": _set(torch.ones(3), 1, math.inf)}, "smashed.scale: 1 of 3 values"),
    "topk a tensor": ("topk:0.5", torch.ones(4, 6), "smashed: expected a Packed tensor"),
    "topk fewer": (
        "topk:0.5",
        {"values": TOPK.values[:, :5]},
        r"smashed: expected shape \(1..4, 6\), got \(4, 5\)",
    ),
    "topk halves": ("topk:0.5", {"values": TOPK.values.half()}, "smashed: expected torch.float32"),
    "topk places long": ("topk:0.5", {"beside": TOPK.beside.long()}, "smashed.places: expected torch.int32"),
    "topk places of fewer": (
        "topk:0.5",
        {"beside": TOPK.beside[:3]},
        "smashed.places: expected 6 an image, ascending",
    ),
    "topk place beyond": (
        "topk:0.5",
        {"beside": _set(TOPK.beside, (1, 5), 12)},
        r"smashed.places: expected values in 0..11, got 0..12",
    ),
    "topk place negative": (
        "topk:0.5",
        {"beside": _set(TOPK.beside, (1, 0), -1)},
        "smashed.places: expected values",
    ),
    "topk place twice": (
        "topk:0.5",
        {"beside": _set(TOPK.beside, (1, 1), 0)},
        "smashed.places: expected 6 an image, ascending",
    ),
    "bf16 as fp32": ("bf16", torch.ones(4, 3, 2, 2), "smashed: expected torch.bfloat16, got torch.float32"),
    "bf16 packed": ("bf16", INT8, "smashed: expected a tensor, got Packed"),
    "fp16 as bf16": ("fp16", torch.ones(4, 3, 2, 2).bfloat16(), "smashed: expected torch.float16"),
    "fp16 shape": ("fp16", torch.ones(4, 12).half(), "smashed: expected shape"),
}


@pytest.mark.parametrize("wrong", MALFORMED)
def test_a_payload_with_one_wrong_field_is_refused(wrong):
    """Oracle: the table; the message names peer and field."""
    wire, payload, message = MALFORMED[wrong]
    if isinstance(payload, dict):
        payload = dataclasses.replace(INT8 if wire == "int8" else TOPK, **payload)
    with pytest.raises(WireError, match=f"^client0: {message}.*refused$"):
        parse_format(wire).decode(payload, SPEC, "client0", "smashed")


def test_topks_gradient_must_be_of_the_images_that_were_sent():
    """Oracle: the words."""
    form = parse_format("topk:0.5")
    assert form.decode(torch.ones(4, 6), SPEC, "server", "gradient", of=TOPK).shape == (4, 3, 2, 2)
    with pytest.raises(WireError, match="server: gradient: expected 4 images, got 3; refused"):
        form.decode(torch.ones(3, 6), SPEC, "server", "gradient", of=TOPK)
    with pytest.raises(WireError, match="server: gradient: expected a tensor, got Packed; refused"):
        form.decode(TOPK, SPEC, "server", "gradient", of=TOPK)


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.int32, torch.int64, torch.bool]


@st.composite
def tensors(draw):
    shape = draw(
        st.sampled_from([(), (3,), (1,), (4, 6), (4, 3, 2, 2), (1, 3, 2, 2), (0, 6), (4, 12), (2, 6)])
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    tensor = torch.randn(shape, generator=generator) * draw(st.sampled_from([0.0, 1.0, 20.0, 1e38, math.nan]))
    if draw(st.booleans()) and len(shape) == 2:
        tensor = torch.arange(float(shape[1])).repeat(shape[0], 1)
    return tensor.to(draw(st.sampled_from(DTYPES)))


@settings(max_examples=300, deadline=None)
@given(
    wire=st.sampled_from(["bf16", "fp16", "int8", "topk:0.5"]),
    payload=tensors() | st.builds(Packed, tensors(), tensors()) | st.none() | st.text(max_size=3),
)
def test_any_payload_becomes_a_fitting_tensor_or_is_refused(wire, payload):
    """Oracle: the spec; whatever else comes is a WireError and nothing worse."""
    try:
        tensor = parse_format(wire).decode(payload, SPEC, "client7", "smashed")
    except WireError as error:
        assert str(error).startswith("client7: smashed") and str(error).endswith("refused")
    else:
        assert SPEC.check_form(tensor, "client7", "smashed") is tensor


@pytest.mark.parametrize(
    "wire",
    [
        "fp8",
        "",
        "int8:4",
        "int8:tensor",
        "topk",
        "topk:",
        "topk:0",
        "topk:1.1",
        "topk:-1",
        "topk:nan",
        "topk:1/0",
        "topk:0.1:ef",
    ],
)
def test_a_format_that_is_none_is_a_config_error(wire):
    """Oracle: the words."""
    with pytest.raises(
        ConfigError, match=r"wire must be one of fp32, bf16|wire topk:R keeps a share R above 0"
    ):
        RunOptions(wire=wire)


@pytest.mark.parametrize("wire", ["int8", "topk:0.1"])
def test_a_format_without_a_graph_does_not_go_with_autograd(wire):
    """Oracle: the message names both and the remedy; the explicit exchanges take it."""
    with pytest.raises(
        ConfigError, match=f"wire {wire} does not go with exchange autograd.*--exchange fused"
    ):
        RunOptions(wire=wire, exchange="autograd")
    assert RunOptions(wire=wire, exchange="fused").agreement(2)["wire"] == wire
    with pytest.raises(ConfigError, match=f"wire {wire} needs a wire: with --unsplit nothing crosses"):
        RunOptions(wire=wire, unsplit=True)
