"""Classes of several hospitals, matched by name: labels are renumbered, nothing else changes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from source_lists import ListSource

from suture.runtime.data.class_names import (
    mapped,
    matched,
    parse_map,
    parse_names,
    with_images,
    without_images,
)
from suture.runtime.data.source import Example, Task
from suture.runtime.errors import ConfigError, DataError


def ward(*names: str, only: tuple[str, ...] | None = None) -> ListSource:
    """Four images of each class (of ``only`` these), in turn."""
    held = [label for label, name in enumerate(names) if only is None or name in only]
    examples = [Example(f"k{i}", f"p{i}", held[i % len(held)]) for i in range(4 * len(held))]
    return ListSource(examples, names=names)


def masks(*names: str) -> ListSource:
    return ListSource(
        [Example(f"k{i}", f"p{i}", None) for i in range(4)], task=Task.SEGMENTATION, names=names
    )


def named(source) -> list[str]:
    """The class of each image by name: the oracle, which no renumbering may change."""
    return [source.classes[one.label] for one in source.examples]


@given(st.permutations(["no finding", "pneumonia", "effusion", "nodule"]))
def test_each_image_keeps_its_class_whatever_the_order(order):
    """Oracle: names before and after; what `read` says is what the index says."""
    source = ward("effusion", "no finding", "nodule", "pneumonia")
    renamed = matched(source, order)
    assert renamed.classes == tuple(order) and named(renamed) == named(source)
    for index, one in enumerate(renamed.examples):
        image, label = renamed.read(index, 8, 1)
        assert int(label) == one.label and torch.equal(image, source.read(index, 8, 1)[0])
    assert [(one.key, one.patient) for one in renamed.examples] == [
        (one.key, one.patient) for one in source.examples
    ]


def test_a_source_with_the_same_classes_is_left_alone():
    """Oracle: the object."""
    source = ward("a", "b")
    assert (
        matched(source, ["a", "b"]) is source
        and mapped(source, {}) is source
        and with_images(source) is source
    )


def test_the_run_may_have_classes_that_a_site_has_no_images_of():
    """Oracle: names by hand; K is the run's."""
    source = matched(ward("ill", "well", only=("ill",)), ("well", "rare", "ill"))
    assert source.classes == ("well", "rare", "ill") and set(named(source)) == {"ill"}
    assert without_images(source) == ("well", "rare")
    assert without_images(ward("a", "b")) == ()


def test_a_class_that_no_image_has_need_not_be_the_runs():
    """Oracle: it is gone."""
    assert matched(ward("ill", "well", "odd", only=("ill", "well")), ("well", "ill")).classes == (
        "well",
        "ill",
    )


def test_several_classes_of_a_site_may_become_one():
    """Oracle: names by hand."""
    source = ward("mild", "none", "severe")
    merged = mapped(source, {"mild": "diseased", "severe": "diseased", "none": "healthy"})
    assert merged.classes == ("diseased", "healthy")
    run = matched(merged, ("healthy", "diseased"))
    assert named(run)[:3] == ["diseased", "healthy", "diseased"]


def test_two_classes_may_swap_their_names():
    """Oracle: names by hand: the map is applied once."""
    assert named(mapped(ward("a", "b"), {"a": "b", "b": "a"}))[:2] == ["b", "a"]


@pytest.mark.parametrize(
    ("own", "run", "words"),
    [
        (("ill", "well"), ("healthy", "diseased"),
         'images of ill, well, which is no class of the run; this site has: ill, well; the run has: healthy, diseased; say '
         'which class of the run each is: --class-map "ill=CLASS,well=CLASS", with one of the run\'s names for CLASS'),
        (("Pneumonia", "normal"), ("normal", "pneumonia"), '--class-map "Pneumonia=pneumonia"$'),
    ],
)  # fmt: skip
def test_a_class_that_is_not_the_runs_is_refused_with_both_lists_and_the_remedy(own, run, words):
    """Oracle: the message."""
    with pytest.raises(DataError, match=words):
        matched(ward(*own), run)


def test_the_remedy_that_is_typed_out_works():
    """Oracle: the message's own option, as it stands."""
    source = ward("Pneumonia", "Normal")
    with pytest.raises(DataError) as raised:
        matched(source, ("normal", "pneumonia"))
    typed = str(raised.value).rpartition("--class-map ")[2].strip('"')
    assert named(matched(mapped(source, parse_map(typed)), ("normal", "pneumonia")))[:2] == [
        "pneumonia",
        "normal",
    ]


def test_masks_are_matched_by_what_they_mark():
    """Oracle: names by hand; the background's name says nothing, another foreground is another task."""
    assert matched(masks("background", "lung"), ("rest", "lung")).classes == ("rest", "lung")
    with pytest.raises(
        DataError, match="images of lung, which is no class of the run; .* the run has: rest, heart"
    ):
        matched(masks("background", "lung"), ("rest", "heart"))
    with pytest.raises(DataError, match="the run has: lung, background"):
        matched(masks("background", "lung"), ("lung", "background"))
    assert matched(mapped(masks("background", "lungs"), {"lungs": "lung"}), ("rest", "lung")).classes == (
        "rest",
        "lung",
    )
    with pytest.raises(ConfigError, match="makes one class of background, lung, and a mask needs two"):
        mapped(masks("background", "lung"), {"background": "lung"})


def test_a_map_of_a_class_that_is_not_there_is_refused():
    """Oracle: the message lists what is there."""
    with pytest.raises(
        ConfigError, match="names the class 'sick', which list does not have here; it has: ill, well"
    ):
        mapped(ward("ill", "well"), {"sick": "diseased"})


def test_names_are_parted_at_commas_and_may_be_quoted():
    """Oracle: by hand."""
    assert parse_names("healthy, diseased") == ("healthy", "diseased")
    assert parse_names('"mild, or none",severe') == ("mild, or none", "severe")
    assert parse_map('ill=diseased, "mild, or none"=healthy'.replace('"mild, or none"=', '"mild, or none=').replace("healthy", 'healthy"')) == {
        "ill": "diseased", "mild, or none": "healthy"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a", "expected 2 to 1000 names of classes, got 1"),
        ("", "expected 2 to 1000 names"),
        ("a,a", "'a' is there twice"),
        ("a,,b", "must have 1 to 200 printable characters, got ''"),
        ("a,b\x1b[2J", "printable characters"),
        ("a," + "b" * 201, "1 to 200 printable characters"),
    ],
)
def test_what_are_no_names_is_refused(text, words):
    """Oracle: the messages, with an example that works."""
    with pytest.raises(ConfigError, match=words):
        parse_names(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a", "expected pairs of this site's name and the run's"),
        ("a=", "expected pairs"),
        ("=b", "expected pairs"),
        ("a=b,a=c", "gives 'a' two names"),
    ],
)
def test_what_is_no_map_is_refused(text, words):
    """Oracle: the messages."""
    with pytest.raises(ConfigError, match=words):
        parse_map(text)
