"""What crosses the wire is refused, with peer and field named, unless it is exactly what the protocol allows.

Oracle: tables of messages wrong in one field each, and hypothesis for the tensors; the expected words are
written out here.
"""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from suture.runtime.errors import ERRORS, SutureError, WireError
from suture.runtime.state.handoff import MAX_BYTES
from suture.runtime.wire.checks import (
    TensorSpec,
    check_farewell,
    check_finite,
    check_handoff,
    check_hello,
    check_loss,
    check_scores,
    check_upload,
)
from suture.runtime.wire.messages import Farewell, Hello, LossReply, Refusal, SealedHandoff, Upload

SMASHED = TensorSpec((2, 3), torch.float32, max_batch=4)
LABELS = TensorSpec((), torch.int64, max_batch=4, below=3)
GOOD = Upload(1, 0, "train", torch.zeros(4, 2, 3), torch.tensor([0, 1, 2, 0]))


def _with(value: float) -> Tensor:
    tensor = torch.zeros(4, 2, 3)
    tensor[3, 1, 2] = value
    return tensor


def _nested() -> Tensor:
    return torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(2, 3)])


UPLOADS = {
    "rank too low": ({"smashed": torch.zeros(4, 6)}, r"smashed: expected shape \(1..4, 2, 3\), got \(4, 6\)"),
    "rank too high": ({"smashed": torch.zeros(4, 2, 3, 1)}, r"smashed: .* got \(4, 2, 3, 1\)"),
    "rank zero": ({"smashed": torch.tensor(1.0)}, r"smashed: .* got \(\)"),
    "shape": ({"smashed": torch.zeros(4, 3, 2)}, r"smashed: .* got \(4, 3, 2\)"),
    "float64": (
        {"smashed": torch.zeros(4, 2, 3).double()},
        "smashed: expected torch.float32, got torch.float64",
    ),
    "half": ({"smashed": torch.zeros(4, 2, 3).half()}, "smashed: expected torch.float32, got torch.float16"),
    "integers": (
        {"smashed": torch.zeros(4, 2, 3).long()},
        "smashed: expected torch.float32, got torch.int64",
    ),
    "complex": (
        {"smashed": torch.zeros(4, 2, 3) + 0j},
        "smashed: expected torch.float32, got torch.complex64",
    ),
    "nan": ({"smashed": _with(float("nan"))}, "smashed: 1 of 24 values are NaN or infinite"),
    "inf": ({"smashed": _with(float("inf"))}, "smashed: 1 of 24 values"),
    "minus inf": ({"smashed": _with(float("-inf"))}, "smashed: 1 of 24 values"),
    "empty batch": ({"smashed": torch.zeros(0, 2, 3)}, r"smashed: .* got \(0, 2, 3\)"),
    "batch too large": ({"smashed": torch.zeros(5, 2, 3)}, r"smashed: .* got \(5, 2, 3\)"),
    "sparse": ({"smashed": torch.zeros(4, 2, 3).to_sparse()}, "smashed: expected a dense tensor"),
    "nested": ({"smashed": _nested()}, "smashed: expected a dense tensor"),
    "quantised": (
        {"smashed": torch.quantize_per_tensor(torch.zeros(4, 2, 3), 0.1, 0, torch.quint8)},
        "smashed: expected a dense tensor",
    ),
    "no tensor": ({"smashed": None}, "smashed: expected a tensor, got NoneType"),
    "a list": ({"smashed": [[0.0]]}, "smashed: expected a tensor, got list"),
    "label too large": ({"labels": torch.tensor([0, 1, 2, 3])}, r"labels: expected values in 0..2, got 0..3"),
    "label negative": (
        {"labels": torch.tensor([0, -1, 2, 1])},
        r"labels: expected values in 0..2, got -1..2",
    ),
    "labels missing": ({"labels": None}, "labels: expected a tensor, got NoneType"),
    "fewer labels": ({"labels": torch.tensor([0, 1])}, "labels: expected 4, one a smashed image, got 2"),
    "labels as floats": ({"labels": torch.zeros(4)}, "labels: expected torch.int64, got torch.float32"),
    "labels one-hot": (
        {"labels": torch.zeros(4, 3).long()},
        r"labels: expected shape \(1..4\), got \(4, 3\)",
    ),
    "no phase": ({"phase": "nap"}, "phase: 'nap' does not fit the turn"),
    "phase of another turn": ({"phase": "test"}, "phase: 'test' does not fit the turn"),
    "phase no text": ({"phase": 7}, "phase: 7 does not fit the turn"),
    "batch negative": ({"batch": -1}, "batch: expected a number from 0, got -1"),
    "batch a bool": ({"batch": True}, "batch: expected a number from 0, got True"),
    "batch no number": ({"batch": "first"}, "batch: expected a number from 0, got 'first'"),
}


@pytest.mark.parametrize("wrong", UPLOADS)
def test_an_upload_with_one_wrong_field_is_refused(wrong):
    """Oracle: the table; the message names the peer first."""
    fields, message = UPLOADS[wrong]
    with pytest.raises(WireError, match=f"^client0: {message}.*refused$"):
        check_upload(dataclasses.replace(GOOD, **fields), "client0", SMASHED, LABELS, training=True)


def test_labels_where_they_must_stay_at_home_are_refused():
    """Oracle: the message; without them the same upload passes."""
    with pytest.raises(WireError, match="^client0: labels: they must stay at home here; refused$"):
        check_upload(GOOD, "client0", SMASHED, None, training=True)
    check_upload(dataclasses.replace(GOOD, labels=None), "client0", SMASHED, None, training=True)


@pytest.mark.parametrize("phase", ["validation", "test", "query"])
def test_evaluation_takes_its_own_phases_only(phase):
    """Oracle: the phases of an evaluation turn."""
    upload = dataclasses.replace(GOOD, phase=phase, labels=None)
    check_upload(upload, "client0", SMASHED, None, training=False)
    with pytest.raises(WireError, match="does not fit the turn"):
        check_upload(upload, "client0", SMASHED, None, training=True)


def test_a_sum_that_overflows_does_not_condemn_finite_values():
    """Oracle: every value is finite, although their sum is not."""
    huge = torch.full((4, 2, 3), torch.finfo(torch.float32).max)
    assert torch.isinf(huge.sum())
    assert SMASHED.check(huge, "client0", "smashed") is huge
    mixed = huge * torch.tensor([1.0, 1.0, -1.0])
    mixed[0, 0, 0] = float("nan")
    with pytest.raises(WireError, match="1 of 24"):
        check_finite(mixed, "client0", "smashed")


def test_infinities_that_cancel_are_noticed():
    """Oracle: inf - inf is NaN, and two values are counted."""
    tensor = _with(float("inf"))
    tensor[0, 0, 0] = float("-inf")
    with pytest.raises(WireError, match="2 of 24"):
        check_finite(tensor, "client0", "smashed")


DTYPES = [torch.float32, torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool]
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@settings(max_examples=150, deadline=None)
@given(
    shape=SHAPES | st.integers(0, 6).map(lambda n: (n, 2, 3)), dtype=st.sampled_from(DTYPES), spoilt=st.data()
)
def test_a_tensor_passes_unchanged_or_is_refused_by_name(shape, dtype, spoilt):
    """Oracle: the definition of fitting, spelled out for this one spec."""
    tensor = torch.zeros(shape, dtype=dtype)
    bad = None
    if dtype.is_floating_point and tensor.numel() and spoilt.draw(st.booleans()):
        bad = spoilt.draw(st.sampled_from([float("nan"), float("inf"), float("-inf")]))
        tensor.view(-1)[spoilt.draw(st.integers(0, tensor.numel() - 1))] = bad
    fits = dtype is torch.float32 and shape[1:] == (2, 3) and 1 <= (shape or (0,))[0] <= 4 and bad is None
    if fits:
        before = tensor.clone()
        assert SMASHED.check(tensor, "client7", "smashed") is tensor
        assert torch.equal(tensor, before)
    else:
        with pytest.raises(WireError, match="^client7: smashed: .*; refused$"):
            SMASHED.check(tensor, "client7", "smashed")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 2), max_size=6))
def test_labels_pass_only_within_their_range(values):
    """Oracle: plain Python over the same values."""
    labels = torch.tensor(values, dtype=torch.int64)
    if 1 <= len(values) <= 4 and all(0 <= value < 3 for value in values):
        assert LABELS.check(labels, "client7", "labels").tolist() == values
    else:
        with pytest.raises(WireError, match="^client7: labels: .*; refused$"):
            LABELS.check(labels, "client7", "labels")


HELLO = Hello("client0", {"lr": "0.1"}, 8, 2, torch.tensor([1.0, 2.0, 0.5]))
HELLOS = {
    "not a hello": ("hello", "expected a Hello, got str"),
    "no name": ({"client": ""}, "name must be letters, digits and underscores, got ''"),
    "path as name": ({"client": "../x"}, "name must be letters, digits and underscores, got '../x'"),
    "long name": ({"client": "a" * 65}, "name must be"),
    "number as name": ({"client": 5}, "name must be letters, digits and underscores, got 5"),
    "agreement no mapping": ({"agreement": [("lr", "0.1")]}, "client0: agreement: expected options as text"),
    "agreement of numbers": ({"agreement": {"lr": 0.1}}, "client0: agreement: expected options as text"),
    "no images": ({"num_images": 0}, "client0: num_batches: 2 of 0 images; both or none"),
    "images as text": ({"num_images": "8"}, "client0: num_images: expected a number from 0, got '8'"),
    "no batches": ({"num_batches": 0}, "client0: num_batches: 0 of 8 images; both or none"),
    "batches a bool": ({"num_batches": True}, "client0: num_batches: expected a number from 0, got True"),
    "weights no tensor": (
        {"class_weights": [1.0] * 3},
        "client0: class_weights: expected a tensor, got list",
    ),
    "too few weights": (
        {"class_weights": torch.ones(2)},
        r"client0: class_weights: expected shape \(3\), got \(2,\)",
    ),
    "weights of rank 2": ({"class_weights": torch.ones(1, 3)}, "client0: class_weights: expected shape"),
    "weights as integers": (
        {"class_weights": torch.ones(3).long()},
        "client0: class_weights: expected torch.float32",
    ),
    "weights nan": (
        {"class_weights": torch.tensor([1.0, float("nan"), 1.0])},
        "client0: class_weights: 1 of 3",
    ),
    "negative weight": (
        {"class_weights": torch.tensor([1.0, -1.0, 1.0])},
        "client0: class_weights: expected values",
    ),
}


@pytest.mark.parametrize("wrong", HELLOS)
def test_a_hello_with_one_wrong_field_is_refused(wrong):
    """Oracle: the table."""
    fields, message = HELLOS[wrong]
    hello = dataclasses.replace(HELLO, **fields) if isinstance(fields, dict) else fields
    with pytest.raises(WireError, match=message):
        check_hello(hello, 3)


def test_a_sound_hello_passes_and_weights_stay_at_home_where_labels_do():
    """Oracle: the message comes back; weights of a loss that is not the server's are refused."""
    assert check_hello(HELLO, 3) is HELLO
    assert check_hello(dataclasses.replace(HELLO, class_weights=None), None)
    with pytest.raises(WireError, match="client0: class_weights: they must stay at home here; refused"):
        check_hello(HELLO, None)


HANDOFF = SealedHandoff(1, b"", bytes(12), torch.zeros(64, dtype=torch.uint8))
HANDOFFS = {
    "not a hand-off": ({"turn": 1}, "expected a sealed hand-off, got dict"),
    "turn below 0": (dataclasses.replace(HANDOFF, turn=-1), "turn: expected a number from 0, got -1"),
    "turn a bool": (dataclasses.replace(HANDOFF, turn=True), "turn: expected a number from 0, got True"),
    "turn as text": (dataclasses.replace(HANDOFF, turn="1"), "turn: expected a number from 0, got '1'"),
    "previous short": (dataclasses.replace(HANDOFF, previous=b"x"), "previous: expected 0 or 32 bytes"),
    "previous text": (dataclasses.replace(HANDOFF, previous="x" * 32), "previous: expected 0 or 32 bytes"),
    "nonce short": (dataclasses.replace(HANDOFF, nonce=bytes(11)), "nonce: expected 12 bytes"),
    "nonce missing": (dataclasses.replace(HANDOFF, nonce=None), "nonce: expected 12 bytes"),
    "ciphertext bytes": (dataclasses.replace(HANDOFF, ciphertext=bytes(64)), "ciphertext: expected uint8"),
    "ciphertext floats": (
        dataclasses.replace(HANDOFF, ciphertext=torch.zeros(64)),
        "ciphertext: expected uint8",
    ),
    "ciphertext 2d": (
        dataclasses.replace(HANDOFF, ciphertext=HANDOFF.ciphertext.view(8, 8)),
        r"ciphertext: expected one dimension of 16..\d+ bytes, got \(8, 8\)",
    ),
    "ciphertext short": (
        dataclasses.replace(HANDOFF, ciphertext=HANDOFF.ciphertext[:15]),
        r"ciphertext: expected one dimension of 16..\d+ bytes, got \(15,\)",
    ),
    "ciphertext sparse": (
        dataclasses.replace(HANDOFF, ciphertext=HANDOFF.ciphertext.to_sparse()),
        "ciphertext: expected uint8",
    ),
    "ciphertext with gaps": (
        dataclasses.replace(HANDOFF, ciphertext=HANDOFF.ciphertext[::2]),
        "ciphertext: expected uint8",
    ),
}


@pytest.mark.parametrize("wrong", HANDOFFS)
def test_a_handoff_with_one_wrong_field_is_refused(wrong):
    """Oracle: the table."""
    handoff, message = HANDOFFS[wrong]
    with pytest.raises(WireError, match=f"^client0: handoff(.|: ){message}.*refused$"):
        check_handoff(handoff, "client0", MAX_BYTES)


def test_a_sound_handoff_passes_up_to_the_limit():
    """Oracle: the limit itself."""
    assert check_handoff(HANDOFF, "client0", 64) is HANDOFF
    with pytest.raises(WireError, match=r"16..63 bytes, got \(64,\)"):
        check_handoff(HANDOFF, "client0", 63)


SCORES = {
    "no mapping": ([("test", {})], "scores: expected a mapping, got list"),
    "unknown phase": ({"nap": {"loss": 1.0}}, "scores: expected phases train, validation, test, got 'nap'"),
    "phase no text": ({3: {"loss": 1.0}}, "scores: expected phases .* got 3"),
    "values no mapping": ({"test": 0.5}, "scores: expected phases"),
    "too many": ({"test": {f"m{i}": 0.0 for i in range(65)}}, "scores: expected phases"),
    "name no text": ({"test": {3: 0.5}}, "scores: expected a metric's name, got 3"),
    "name with markup": ({"test": {"<b>": 0.5}}, "scores: expected a metric's name, got '<b>'"),
    "name too long": ({"test": {"a" * 41: 0.5}}, "scores: expected a metric's name"),
    "nan": ({"test": {"loss": float("nan")}}, "scores.loss: expected a finite number, got nan"),
    "inf": ({"test": {"loss": float("inf")}}, "scores.loss: expected a finite number, got inf"),
    "beyond a float": ({"test": {"loss": 10**400}}, "scores.loss: expected a finite number"),
    "text": ({"test": {"loss": "low"}}, "scores.loss: expected a finite number, got 'low'"),
    "a bool": ({"test": {"loss": True}}, "scores.loss: expected a finite number, got True"),
    "a tensor": ({"test": {"loss": torch.tensor(1.0)}}, "scores.loss: expected a finite number"),
}


@pytest.mark.parametrize("wrong", SCORES)
def test_a_report_with_one_wrong_score_is_refused(wrong):
    """Oracle: the table."""
    scores, message = SCORES[wrong]
    with pytest.raises(WireError, match=f"^client0: {message}.*refused$"):
        check_scores(scores, "client0")


def test_a_sound_report_comes_back_as_plain_floats():
    """Oracle: the same numbers."""
    assert check_scores({"test": {"auroc": 1, "loss": 0.25}, "validation": {}}, "client0") == {
        "test": {"auroc": 1.0, "loss": 0.25},
        "validation": {},
    }


@pytest.mark.parametrize(
    "farewell",
    [
        "bye",
        Farewell([], 1),
        Farewell({}, 1),
        Farewell({"bottom": "a" * 63}, 1),
        Farewell({"bottom": "g" * 64}, 1),
        Farewell({"top": "a" * 64}, 1),
        Farewell({"bottom": "a" * 64}, -1),
        Farewell({"bottom": "a" * 64}, "much"),
    ],
)
def test_a_malformed_farewell_is_refused(farewell):
    """Oracle: a farewell names digests of a client's parts (64 hex digits) and a number of bytes."""
    with pytest.raises(WireError, match="^client0: farewell.*refused$"):
        check_farewell(farewell, "client0")


def test_a_sound_farewell_passes():
    """Oracle: the message itself comes back."""
    farewell = Farewell({"bottom": "a" * 64, "head": "0" * 64}, 1)
    assert check_farewell(farewell, "client0") is farewell


@pytest.mark.parametrize(
    "reply",
    [
        torch.tensor(1.0),
        LossReply(1.0, 1.0),
        LossReply(torch.zeros(1), 1.0),
        LossReply(torch.tensor(1), 1.0),
        LossReply(torch.tensor(1.0), "low"),
        LossReply(torch.tensor(1.0), torch.tensor(1.0)),
    ],
)
def test_a_malformed_loss_is_refused_by_the_client(reply):
    """Oracle: a loss is a float32 scalar with a number beside it; the server is believed in nothing either."""
    with pytest.raises(WireError, match="^server: loss: expected .*refused$"):
        check_loss(reply, "server")


@pytest.mark.parametrize("name", ERRORS)
def test_a_refusal_keeps_class_and_message(name):
    """Oracle: the error that was raised on the other side."""
    error = ERRORS[name]("client0 has lr = 0.5, the server has 0.1")
    with pytest.raises(SutureError) as raised:
        Refusal.of(error).raise_it()
    assert type(raised.value) is type(error) and str(raised.value) == str(error)


@pytest.mark.parametrize("name", ["SystemExit", "KeyboardInterrupt", "", "os.system", "ValueError"])
def test_a_refusal_of_an_unknown_class_is_a_suture_error(name):
    """Oracle: a peer cannot choose which exception is raised here beyond our own."""
    with pytest.raises(SutureError, match="^told so$") as raised:
        Refusal(name, "told so").raise_it()
    assert type(raised.value) is SutureError


def test_every_error_has_an_exit_code_of_its_own():
    """Oracle: scripts tell errors apart by the code; 0 would say that all went well."""
    codes = [error.exit_code for error in ERRORS.values()]
    assert len(set(codes)) == len(codes) and min(codes) >= 1
