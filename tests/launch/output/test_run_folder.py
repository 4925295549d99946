"""A run folder holds one run: made once, refused when occupied, taken up again only with the same options.

Oracle: the bytes in the folder before and after, and the messages.
"""

import dataclasses
import json
from pathlib import Path

import pytest

from suture.launch.options.options import SITES_OWN, AskedOptions, RunOptions
from suture.launch.options.toml import read_toml
from suture.launch.output.run_folder import holds_run, keep_classes, open_folder, saved_serving, with_saved
from suture.runtime.errors import ConfigError


@pytest.fixture
def options(tmp_path) -> RunOptions:
    return AskedOptions(clients=2, run_dir=str(tmp_path / "runs" / "mine")).resolved()


def _content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_folder_holds_what_repeats_the_run(options, tmp_path):
    """Oracle: the options, read back; the id that the run was given; where it was started."""
    folder = open_folder(options, "abc")
    assert (folder.path, folder.run, folder.resumed) == (tmp_path / "runs" / "mine", "abc", False)
    again = AskedOptions(**read_toml(folder.path / "config.toml")).resolved()
    assert again == dataclasses.replace(options, run_dir=None)
    identity = {"run": "abc", "clients": 2, "started_in": str(Path.cwd())}
    assert json.loads((folder.path / "run.json").read_text()) == identity
    assert "same --handoff-key" in (folder.path / "config.toml").read_text()


def test_a_server_of_sites_writes_nothing_of_images_that_it_has_not(options):
    """Oracle: the file's lines; the run goes on whatever the server is told of images the next time."""
    folder = open_folder(options, "abc", {})
    written = read_toml(folder.path / "config.toml")
    assert not written.keys() & set(SITES_OWN) and written["model"] == options.model
    folder.lock.close()
    asked = {"resume": True, "run_dir": options.run_dir, "data": "mnist:/elsewhere", "train_images": 7}
    again = AskedOptions(**with_saved(asked, opens_data=False))
    assert open_folder(dataclasses.replace(again, data="fundus-phantom").resolved(), "other", {}).run == "abc"


def test_an_empty_folder_is_taken(options, tmp_path):
    """Oracle: a person may make the folder first."""
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    assert not open_folder(options, "abc").resumed


def test_without_a_name_the_folder_is_named_by_the_time(tmp_path, monkeypatch):
    """Oracle: below runs/, in the current folder."""
    monkeypatch.chdir(tmp_path)
    folder = open_folder(AskedOptions(clients=1).resolved(), "abc")
    assert folder.path.parent.name == "runs" and (tmp_path / folder.path / "run.json").exists()


@pytest.mark.parametrize("name", ["thesis.txt", ".hidden", "config.toml", "run.json"])
def test_a_folder_that_holds_anything_is_refused_and_left_alone(name, options, tmp_path):
    """Oracle: the message names both ways out, and every byte is where it was."""
    occupied = tmp_path / "runs" / "mine"
    occupied.mkdir(parents=True)
    (occupied / name).write_text("do not touch")
    before = _content(occupied)
    with pytest.raises(ConfigError, match=r"mine is not empty; .* with --resume, or name another --run-dir"):
        open_folder(options, "abc")
    assert _content(occupied) == before


def test_a_second_run_does_not_overwrite_the_first(options):
    """Oracle: the first run's files."""
    first = open_folder(options, "first")
    before = _content(first.path)
    with pytest.raises(ConfigError, match="mine is in use by process"):
        open_folder(options, "second")
    first.lock.close()
    with pytest.raises(ConfigError, match="is not empty"):
        open_folder(options, "second")
    assert _content(first.path) == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_is_going_on_is_left_alone(resume, options):
    """Oracle: the message and the folder's bytes; afterwards it can be resumed."""
    first = open_folder(options, "abc")
    before = _content(first.path)
    with pytest.raises(ConfigError, match=r"mine is in use by process \d+ on .* or name another --run-dir"):
        open_folder(dataclasses.replace(options, resume=resume, epochs=50), "another")
    assert _content(first.path) == before
    first.lock.close()
    assert open_folder(dataclasses.replace(options, resume=True), "another").resumed


def test_the_classes_that_the_sites_agreed_on_are_kept(options):
    """Oracle: the names, for a server that is started again; a run whose ranks say them has none."""
    first = open_folder(options, "abc")
    assert first.classes == ()
    classes = ("no finding", "mild, or moderate", "naïve \u2028")
    kept = keep_classes(first, classes)
    assert (kept.path, kept.run, kept.resumed, kept.classes) == (first.path, "abc", False, classes)
    assert kept.lock is first.lock
    kept.lock.close()
    again = open_folder(dataclasses.replace(options, resume=True), "another")
    assert (again.run, again.classes) == ("abc", classes)


@pytest.mark.parametrize("content", ["{", "[]", "3", '{"clients": 2}', '{"run": "abc", "classes": 3}', ""])
def test_an_identity_that_was_spoilt_is_named(content, options):
    """Oracle: the message names the file; whatever is in it, nothing else is raised."""
    folder = open_folder(options, "abc")
    folder.lock.close()
    (folder.path / "run.json").write_text(content)
    with pytest.raises(ConfigError, match=r"run.json is damaged .*; the run cannot be identified"):
        open_folder(dataclasses.replace(options, resume=True), "abc")


def test_whether_a_folder_holds_a_run_is_asked_before_it_is_opened(options, tmp_path):
    """Oracle: False for what is not there and for an empty folder; True from then on."""
    path = tmp_path / "runs" / "mine"
    assert not holds_run(path)
    path.mkdir(parents=True)
    assert not holds_run(path)
    open_folder(options, "abc").lock.close()
    assert holds_run(path)


def test_a_lock_file_that_was_left_is_not_a_run(options, tmp_path):
    """Oracle: a folder with nothing else in it is empty."""
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / ".lock").write_text("4711 on some-host\n")
    assert not open_folder(options, "abc").resumed


def test_a_file_in_the_way_is_said_in_words(options, tmp_path):
    """Oracle: the message."""
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(ConfigError, match=r"cannot make run folder .*mine: .*; name another --run-dir"):
        open_folder(options, "abc")


def test_resuming_takes_up_the_same_run(options):
    """Oracle: the id that the run had; nothing is written."""
    first = open_folder(options, "abc")
    first.lock.close()
    before = _content(first.path)
    again = open_folder(dataclasses.replace(options, resume=True), "another")
    assert (again.path, again.run, again.resumed) == (first.path, "abc", True)
    assert _content(first.path) == before


@pytest.mark.parametrize("made", [False, True])
def test_resuming_where_no_run_is_is_refused_and_makes_nothing(made, options, tmp_path):
    """Oracle: the message, and the folders as they were."""
    folder = tmp_path / "runs" / "mine"
    if made:
        folder.mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"mine holds no run to resume; leave out --resume"):
        open_folder(dataclasses.replace(options, resume=True), "abc")
    assert folder.exists() == made and not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.5), ("seed", 1), ("cut", "4"), ("model", "resnet18"), ("batch_size", 3), ("train_images", 5),
        ("partition", "dirichlet:1"), ("augment", "none"), ("clients", 3), ("labels", "home"), ("optimizer", "sgd"),
        ("schedule", "shuffled"), ("class_weights", "balanced"), ("exchange", "local"), ("image_size", 32),
    ],
)  # fmt: skip
def test_resuming_with_another_option_names_both_values(name, value, options):
    """Oracle: the option, what it was, what it is now, and both remedies."""
    open_folder(options, "abc").lock.close()
    was = getattr(options, name)
    remedies = f"leave --{name.replace('_', '-')} out to go on with its own, or .* another --run-dir"
    with pytest.raises(ConfigError, match=f"was started with {name} = {was}, got {value}; {remedies}"):
        open_folder(dataclasses.replace(options, resume=True, **{name: value}), "abc")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 50),
        ("threads", 1),
        ("device", "cpu"),
        ("lease", 5.0),
        ("interface", "lo"),
        ("accept_rollback", 3),
    ],
)
def test_resuming_may_change_what_does_not_change_the_weights(name, value, options):
    """Oracle: more rounds, another machine's threads, device and network are no other run."""
    open_folder(options, "abc").lock.close()
    assert open_folder(dataclasses.replace(options, resume=True, **{name: value}), "abc").resumed


def test_a_config_file_that_was_spoilt_is_named(options):
    """Oracle: the message names file and option."""
    folder = open_folder(options, "abc")
    folder.lock.close()
    (folder.path / "config.toml").write_text('modle = "unet"\n')
    with pytest.raises(ConfigError, match=r"config.toml: unknown option 'modle'"):
        open_folder(dataclasses.replace(options, resume=True), "abc")


# Options that a run has saved ---------------------------------------------------------------------------


def test_a_run_that_is_resumed_says_its_own_options(options):
    """Oracle: the options that it was begun with."""
    begun = dataclasses.replace(options, lr=0.25, epochs=7, threads=3, lease=5.0, augment="none")
    folder = open_folder(begun, "abc")
    folder.lock.close()
    asked = {"resume": True, "run_dir": str(folder.path)}
    assert AskedOptions(**with_saved(asked)).resolved() == dataclasses.replace(begun, resume=True)


@pytest.mark.parametrize("asked", [{}, {"lr": 0.5}, {"run_dir": "a/folder"}, {"resume": True}])
def test_who_resumes_nothing_is_asked_nothing(asked):
    """Oracle: what went in."""
    assert with_saved(asked) == asked


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", 50), ("lease", 120.0), ("threads", 1), ("isolate", "auto")]
)
def test_what_may_change_wins_over_what_was_saved(name, value, options):
    """Oracle: the value that was given, a default of the option among them."""
    folder = open_folder(dataclasses.replace(options, lease=5.0, isolate="off"), "abc")
    folder.lock.close()
    asked = {"resume": True, "run_dir": str(folder.path), name: value}
    assert with_saved(asked)[name] == value


@pytest.mark.parametrize(
    ("name", "value", "was"),
    [
        ("lr", 0.5, "0.0003"),
        ("data", "chest-phantom", "fundus-phantom"),
        ("width", 4, "None"),
        ("race", True, "False"),
    ],
)
def test_what_may_not_change_is_refused_before_anything_is_started(name, value, was, options):
    """Oracle: both values, and the option's name on the command line."""
    folder = open_folder(options, "abc")
    typed = {"race": "--async"}.get(name, f"--{name}")
    with pytest.raises(ConfigError, match=f"was started with {name} = {was}, got {value}; leave {typed} out"):
        with_saved({"resume": True, "run_dir": str(folder.path), name: value})


def test_a_run_that_is_not_there_cannot_be_resumed_but_by_a_rank_elsewhere(tmp_path, monkeypatch):
    """Oracle: the message; on another node the server's folder need not exist."""
    asked = {"resume": True, "run_dir": str(tmp_path / "no")}
    with pytest.raises(ConfigError, match="no holds no run to resume"):
        with_saved(asked)
    monkeypatch.setenv("RANK", "1")
    assert with_saved(asked) == asked


MAY_MOVE = ("data", "handoff_key")


@pytest.mark.parametrize("name", [*MAY_MOVE, "weights", "schedule"])
def test_from_another_folder_it_is_said_what_is_missing(name, tmp_path, monkeypatch):
    """Oracle: the message names option, file and both folders; with the file given, or from the first folder, it works."""
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    monkeypatch.chdir(tmp_path / "first")
    Path("mine").write_text("")
    value = {"data": "image-folder:mine", "schedule": "replay:mine"}.get(name, "mine")
    options = dataclasses.replace(
        AskedOptions(clients=2).resolved(), **{name: value}, run_dir=str(tmp_path / "run")
    )
    open_folder(options, "abc").lock.close()
    asked = {"resume": True, "run_dir": str(tmp_path / "run")}
    assert with_saved(asked)[name] == value
    monkeypatch.chdir(tmp_path / "second")
    first, second = tmp_path / "first", tmp_path / "second"
    words = f"was started in {first} with {name} = {value}, and there is no mine"
    given = f", or give --{name.replace('_', '-')} with where it is now" if name in MAY_MOVE else "$"
    with pytest.raises(ConfigError, match=f"{words} in {second}; resume in {first}{given}"):
        with_saved(asked)
    if name == "data":
        assert with_saved(asked, opens_data=False)[name] == value
    if name in MAY_MOVE:
        moved = value.replace("mine", "../first/mine")
        assert with_saved(asked | {name: moved})[name] == moved
    monkeypatch.chdir(first)
    Path("mine").unlink()
    with pytest.raises(ConfigError, match=f"{words} any more; bring it back{given}"):
        with_saved(asked)


def test_a_server_s_own_options_are_kept_with_the_run(options):
    """Oracle: what it was begun with; what it is resumed with takes its place, and the classes stay."""
    first = open_folder(options, "abc", {"tls": "proxy", "grace": 5.0})
    keep_classes(first, ("a", "b")).lock.close()
    assert saved_serving(first.path) == {"tls": "proxy", "grace": 5.0}
    again = open_folder(dataclasses.replace(options, resume=True), "abc", {"tls": "proxy"})
    assert again.classes == ("a", "b") and saved_serving(first.path) == {"tls": "proxy"}
