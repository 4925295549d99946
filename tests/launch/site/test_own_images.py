"""What a site uses of its images, and what it is told: shares, numbers, classes, tasks."""

import logging

import pytest
from small_files import goes_across, write_folders, write_table

from suture.launch import build
from suture.launch.options.options import AskedOptions, RunOptions
from suture.launch.site import own_images
from suture.launch.site.own_images import SiteDataConfig
from suture.launch.site.terms import agreed_classes
from suture.runtime.data.class_names import matched
from suture.runtime.errors import ConfigError, WireError
from suture.runtime.wire.messages import Hello, Terms


@pytest.fixture
def folders(tmp_path):
    """Forty pictures of stripes across, in two folders, and forty of stripes down."""
    return write_folders(tmp_path / "folders", {True: ["mild", "severe"], False: ["none"]}, 1, 80)


def options(data: str, **others: object) -> RunOptions:
    return AskedOptions(data=data, model="resnet18", image_size=32, **others).resolved()


def divided(run: RunOptions, asked: dict[str, object] | None = None, **own: object) -> build.Images:
    config = SiteDataConfig(**own)
    source = own_images.open_own(run, asked or {}, "ward_a", config)
    return own_images.divide(source, run, asked or {}, "ward_a", config)


def test_a_site_uses_all_of_its_images_in_shares(folders):
    """Oracle: the numbers by hand."""
    share = divided(options(f"image-folder:{folders}")).shares[0]
    assert (len(share.train), len(share.validation), len(share.test)) == (56, 8, 16)
    share = divided(options(f"image-folder:{folders}"), validation=0.2, test=0.3).shares[0]
    assert (len(share.train), len(share.validation), len(share.test)) == (40, 16, 24)


def test_a_number_of_images_is_taken_balanced_as_among_ranks(folders):
    """Oracle: `build_site_images`, which shares a source out among one."""
    asked = {"train_images": 12, "validation_images": 3, "test_images": 6}
    run = options(f"image-folder:{folders}", **asked)
    assert divided(run, asked).shares == build.build_site_images(run, "ward_a").shares


def test_numbers_are_balanced_over_the_classes_that_the_map_makes(folders):
    """Oracle: half of them go across, which are two of the folders."""
    asked = {"train_images": 12, "validation_images": 2, "test_images": 6}
    images = divided(
        options(f"image-folder:{folders}", **asked), asked, class_map={"mild": "ill", "severe": "ill"}
    )
    across = [images.source.classes[images.source.examples[i].label] == "ill" for i in images.shares[0].train]
    assert sum(across) == 6


@pytest.mark.parametrize("data", ["fundus-phantom", "chest-phantom"])
def test_all_of_a_drawn_source_is_what_a_run_is_made_for(data):
    """Oracle: the sum of the task's default numbers."""
    run = AskedOptions(data=data).resolved()
    share = divided(run).shares[0]
    used = len(share.train) + len(share.validation) + len(share.test)
    wanted = run.train_images + run.validation_images + run.test_images
    assert used == max(wanted, 64) // 2 * 2


def test_labels_are_the_runs_when_the_images_are_in_memory(folders):
    """Oracle: the stripes of each picture, which are its class."""
    run = options(f"image-folder:{folders}")
    images = divided(run, class_map={"mild": "ill", "severe": "ill", "none": "well"})
    for classes in (("ill", "well"), ("well", "rare", "ill")):
        data = build.build_data(run, build.Images(matched(images.source, classes), images.shares), 0)
        assert data.classes == classes
        for batch in data.test_batches(8, "train"):
            seen = [goes_across(picture[0].numpy()) for picture in data.pixels("train")[:8]]
            assert [classes[label] == "ill" for label in batch.targets.tolist()] == seen
            break
        assert sum(data.class_counts("train")) == 56


def test_weights_of_a_class_without_images_do_not_count(folders):
    """Oracle: the mean over the images is 1, by hand, whatever classes the run has besides."""
    run = options(f"image-folder:{folders}", class_weights="balanced")
    images = divided(run)
    for classes in (("mild", "none", "severe"), ("rare", "severe", "mild", "none", "odd")):
        data = build.build_data(run, build.Images(matched(images.source, classes), images.shares), 0)
        weights, counts = build.class_weights(run, data), data.class_counts("train")
        assert sum(w * n for w, n in zip(weights, counts, strict=True)) == pytest.approx(sum(counts))
        held = {w * n for w, n in zip(weights, counts, strict=True) if n}
        assert max(held) == pytest.approx(min(held)) and all(w > 0 for w in weights)


def test_class_weights_are_offered_where_classes_are_uneven(tmp_path, caplog):
    """Oracle: the line, and that there is none where they are even or weighted."""
    names = {True: ["a", "a", "a", "a", "a", "a", "b"], False: ["a"]}
    folder = write_folders(tmp_path / "uneven", names, 1, 80)
    with caplog.at_level(logging.INFO):
        for weights in ("none", "balanced"):
            run = options(f"image-folder:{folder}", class_weights=weights)
            own_images.offer_weights(run, build.build_data(run, divided(run), 0))
        table = write_table(tmp_path / "table", 1, 40)
        even = options(f"kaggle-dr:{table}")
        own_images.offer_weights(even, build.build_data(even, divided(even), 0))
    (record,) = caplog.records
    assert "training images by class: a 5" in record.message
    assert "--class-weights balanced" in record.message


def test_a_run_of_another_task_names_the_sources_that_fit():
    """Oracle: the messages; a site cannot choose another net."""
    with pytest.raises(
        ConfigError, match="the run trains unet for segmentation, .* fundus-phantom is for cl"
    ) as raised:
        own_images.check_task({"model": "unet"})
    assert "chest-phantom, kaggle-cxr" in str(raised.value) and "--model" not in str(raised.value)
    own_images.check_task({"model": "unet", "data": "chest-phantom"})


def test_more_images_than_memory_has_room_for_are_refused_before_they_are_read(folders, monkeypatch):
    """Oracle: 80 images of 32 px and three channels are 245760 bytes."""
    run = options(f"image-folder:{folders}")
    images = divided(run)
    monkeypatch.setattr(own_images, "free_memory", lambda: 245_760)
    own_images.check_memory(run, images)
    monkeypatch.setattr(own_images, "free_memory", lambda: 245_759)
    with pytest.raises(
        ConfigError, match="80 images at 32 px take 0.2 MB of memory, .* use fewer with --train-images"
    ):
        own_images.check_memory(run, images)


# Who says the classes ------------------------------------------------------------------------------


@pytest.fixture
def answers(monkeypatch):
    """What the server says when it is asked with a proposal; the proposals that it was sent."""
    sent: list[Hello] = []

    def ask(line, search, hello):
        sent.append(hello)
        return Terms("run", {"classes": '["b", "a"]'})

    monkeypatch.setattr("suture.launch.site.terms.ask_terms", ask)
    return sent


def test_classes_that_the_terms_name_are_taken_without_asking_again(answers):
    """Oracle: nothing is sent."""
    terms = Terms("run", {"classes": '["healthy", "ill"]'})
    assert agreed_classes(terms, ("x", "y"), "ward_a", None, None) == ("healthy", "ill")
    assert answers == []


def test_where_nobody_has_said_them_the_servers_answer_is_taken_and_not_ones_own(answers):
    """Oracle: the proposal has the site's names; another site was the first."""
    assert agreed_classes(Terms("run", {}), ("a", "b"), "ward_a", None, None) == ("b", "a")
    (hello,) = answers
    assert hello == Hello("ward_a", {"classes": '["a", "b"]'}, 0, 0)


def test_a_site_of_one_class_cannot_be_the_first(answers):
    """Oracle: the message; nothing is sent."""
    with pytest.raises(ConfigError, match="nobody has said yet which classes .*suture serve --classes a,b"):
        agreed_classes(Terms("run", {}), ("a",), "ward_a", None, None)
    assert answers == []


def test_a_server_of_another_run_or_without_names_is_refused(answers):
    """Oracle: the errors."""
    with pytest.raises(ConfigError, match="has begun another run in the meantime"):
        agreed_classes(Terms("other", {}), ("a", "b"), "ward_a", None, None)
    with pytest.raises(WireError, match="server said '3' of the run's classes"):
        agreed_classes(Terms("run", {"classes": "3"}), ("a", "b"), "ward_a", None, None)
