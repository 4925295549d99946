"""One definition of every option for the command line, the file and the run: nothing is lost between them.

Oracle: the options that went in; messages written out. A new option must be given a value here.
"""

import dataclasses
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from suture.launch.click_options import run_options
from suture.launch.options.options import DEFAULTS, AskedOptions
from suture.launch.options.toml import check_names, flag, read_toml, to_arguments, to_toml
from suture.launch.rank import rank
from suture.runtime.data.registry import SOURCES
from suture.runtime.data.source import Task
from suture.runtime.errors import ConfigError
from suture.runtime.scheduler import SCHEDULES
from suture.threats.registry import ATTACKS, DEFENCES, DETECTORS
from suture.train import train

# A value for every option that is not its default, and what must be set beside it.
VALUES = {
    "data": "chest-phantom",
    "grades": "all",
    "task": "ordinal",
    "columns": "image=file,label=DR grade",
    "structure": "1,2",
    "frame": 2,
    "image_size": 48,
    "augment": "fundus",
    "train_images": 9,
    "validation_images": 3,
    "test_images": 5,
    "held_out_images": 6,
    "partition": "dirichlet:0.5",
    "model": "resnet18",
    "width": 4,
    "cut": "layer2.0",
    "labels": "home",
    "weights": "w e i g h t s.pt",
    "freeze": "all-but-head",
    "epochs": 2,
    "batch_size": 7,
    "optimizer": "sgd",
    "lr": 1e-05,
    "lr_bottom": 2e-06,
    "lr_schedule": "cosine",
    "warm_up": 1,
    "weight_decay": 0.01,
    "clip": 1.5,
    "label_smoothing": 0.1,
    "prox": 0.5,
    "norms": "local",
    "precision": "bf16",
    "early_stop": 4,
    "class_weights": "balanced",
    "test_every_round": True,
    "clients": 3,
    "schedule": "shuffled",
    "race": True,
    "unsplit": True,
    "pooled": True,
    "seed": 2**63 - 1,
    "defence": next(iter(DEFENCES)),
    "detector": next(iter(DETECTORS)),
    "on_alarm": "stop",
    "attack": next(iter(ATTACKS)),
    "judge": "off",
    "recording": "all",
    "exchange": "local",
    "wire": "bf16",
    "overlap": True,
    "handoff_key": 'a "quoted" \\ key\n\twith ümlaut',
    "accept_rollback": 4,
    "release_top": False,
    "lease": 7.5,
    "interface": "lo",
    "sandbox": "off",
    "isolate": "off",
    "threads": 2,
    "device": "cpu",
    "profile": True,
    "run_dir": "some/where",
    "resume": True,
    "checkpoints": "off",
}
BESIDE = {
    "race": {"schedule": "parallel"},
    "pooled": {"unsplit": True},
    "resume": {"run_dir": "some/where"},
    "freeze": {"weights": "w.pt"},
}
NAMES = [option.name for option in dataclasses.fields(AskedOptions)]
AGREED = {
    "data", "grades", "model", "width", "cut", "labels", "image_size", "batch_size", "optimizer", "lr", "seed",
    "wire", "overlap",
}  # fmt: skip


def with_option(name: str) -> AskedOptions:
    return AskedOptions(**{name: VALUES[name]} | BESIDE.get(name, {}))


def parsed(*arguments: str) -> AskedOptions:
    """What the command line makes of ``arguments``."""

    @click.command()
    @run_options
    def command(options: AskedOptions) -> AskedOptions:
        return options

    return command.main(list(arguments), standalone_mode=False)


def from_toml(options: AskedOptions, folder: Path) -> AskedOptions:
    path = folder / "config.toml"
    path.write_text(to_toml(options, "a note\nof two lines"))
    return AskedOptions(**read_toml(path))


def test_every_option_has_a_value_here():
    """Oracle: the fields of `AskedOptions`; each value differs from the default."""
    assert list(VALUES) == NAMES
    assert not [name for name in NAMES if getattr(AskedOptions(), name) == VALUES[name]]
    assert all(option.metadata["help"] for option in dataclasses.fields(AskedOptions))


@pytest.mark.parametrize("name", NAMES)
def test_an_option_survives_its_file(name, tmp_path):
    """Oracle: the options that were written; a run's own place is not among what repeats it."""
    options = with_option(name)
    expected = dataclasses.replace(options, run_dir=None, resume=False, accept_rollback=None)
    assert from_toml(options, tmp_path) == expected


@pytest.mark.parametrize("data", ["fundus-phantom", "chest-phantom"])
def test_resolved_options_survive_their_file(data, tmp_path):
    """Oracle: the resolved options; reading them again resolves to the same."""
    options = AskedOptions(data=data, clients=2, lr=0.1 + 0.2).resolved()
    assert from_toml(options, tmp_path).resolved() == options == options.resolved()
    assert (tmp_path / "config.toml").read_text().startswith("# a note\n# of two lines\n")


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8")), st.floats(min_value=1e-300, max_value=1e300))
def test_any_text_and_number_survive_the_file(tmp_path_factory, text, number):
    """Oracle: the values that were written, control characters and all."""
    options = AskedOptions(handoff_key=text, lr=number)
    assert from_toml(options, tmp_path_factory.getbasetemp()) == options


@pytest.mark.parametrize("name", NAMES)
def test_an_option_survives_the_command_line(name, tmp_path):
    """Oracle: the options that `to_arguments` was given, parsed by click; this is how ranks are started."""
    options = with_option(name)
    if options.resume:  # then others are what a run has saved
        options = dataclasses.replace(options, run_dir=str(tmp_path))
        (tmp_path / "run.json").write_text("{}")
        (tmp_path / "config.toml").write_text("lease = 7.0\n")
    arguments = to_arguments(options)
    assert parsed(*arguments) == options
    (option,) = (option for option in dataclasses.fields(AskedOptions) if option.name == name)
    assert any(argument.removeprefix("--no-").removeprefix("--") == flag(option) for argument in arguments)


def test_no_options_need_no_arguments():
    """Oracle: the defaults."""
    assert to_arguments(AskedOptions()) == [] and parsed() == AskedOptions()


def test_the_command_line_wins_over_the_file(tmp_path):
    """Oracle: one option in both, one in the file only."""
    (tmp_path / "my.toml").write_text('epochs = 3\nbatch-size = 5\nlr = 1\ncut = 2\naugment = "none"\n')
    options = parsed("--config", str(tmp_path / "my.toml"), "--epochs", "9", "--augment", "light")
    assert options == AskedOptions(epochs=9, batch_size=5, lr=1.0, cut="2", augment="light")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"modle": "unet"}, r"my.toml: unknown option 'modle'; known: data, grades, .*model, .*resume"),
        ({"epochs": "3"}, "my.toml: epochs must be a int, got '3'"),
        ({"epochs": 3.0}, "epochs must be a int, got 3.0"),
        ({"epochs": True}, "epochs must be a int, got True"),
        ({"lr": "fast"}, "lr must be a float, got 'fast'"),
        ({"lr": True}, "lr must be a float, got True"),
        ({"unsplit": 1}, "unsplit must be a bool, got 1"),
        ({"unsplit": "yes"}, "unsplit must be a bool, got 'yes'"),
        ({"data": 3}, "data must be a str, got 3"),
        ({"clients": [3]}, r"clients must be a int, got \[3\]"),
        ({"model": {"name": "unet"}}, "model must be a str, got "),
    ],
)
def test_a_file_with_a_wrong_option_is_refused(values, words):
    """Oracle: the message names file, option and value."""
    with pytest.raises(ConfigError, match=words):
        check_names(values, "my.toml")


@pytest.mark.parametrize("content", [None, b"epochs = ", b"\xff\xfe", b"epochs = 1\nepochs = 2\n"])
def test_a_file_that_is_no_toml_is_refused(content, tmp_path):
    """Oracle: the message names the file."""
    if content is not None:
        (tmp_path / "my.toml").write_bytes(content)
    with pytest.raises(ConfigError, match="cannot read options from .*my.toml: "):
        read_toml(tmp_path / "my.toml")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"grades": "some"}, "grades must be one of binary, all, got 'some'"),
        ({"optimizer": "lion"}, "optimizer must be one of adam, adamw, sgd, got 'lion'"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"clients": 0}, "clients must be at least 1, got 0"),
        ({"threads": -1}, "threads must be at least 1, got -1"),
        ({"width": 0}, "width must be at least 1, got 0"),
        (
            {"overlap": True, "exchange": "autograd"},
            "overlap does not go with exchange autograd.*--exchange fused",
        ),
        ({"overlap": True, "unsplit": True}, "overlap needs a wire: with --unsplit nothing crosses"),
        (
            {"overlap": True, "detector": next(iter(DETECTORS))},
            "overlap does not go with detector, which must see",
        ),
        (
            {"wire": "topk:0.1:ef"},
            "wire topk:R keeps a share R above 0 and at most 1, got '0.1:ef'; try topk:0.1",
        ),
        ({"lease": 0.0}, "lease must be above 0 seconds, got 0.0"),
        ({"lease": float("nan")}, "lease must be above 0 seconds, got nan"),
        ({"seed": -1}, "seed must lie in 0..2\\*\\*63 - 1, got -1"),
        ({"seed": 2**63}, "seed must lie in"),
        ({"pooled": True}, "pooled goes with --unsplit"),
        ({"resume": True}, "resume needs --run-dir"),
        ({"resume": True, "run_dir": "x", "checkpoints": "off"}, "resume goes on from a checkpoint"),
        (
            {"unsplit": True, "defence": next(iter(DEFENCES))},
            "guard what crosses the cut: with --unsplit nothing does",
        ),
        ({"unsplit": True, "detector": next(iter(DETECTORS))}, "guard what crosses the cut"),
        ({"unsplit": True, "attack": next(iter(ATTACKS))}, "need a server: with --unsplit there is none"),
        ({"unsplit": True, "recording": "all"}, "need a server"),
        ({"data": "fundus"}, "unknown data source 'fundus'; known: fundus-phantom"),
        ({"data": "mnist"}, "data source mnist needs a path"),
        ({"defence": "walls"}, "walls"),
        ({"attack": "brute"}, "brute"),
        ({"detector": "dog"}, "dog"),
    ],
)
def test_an_option_that_cannot_work_is_refused(values, words):
    """Oracle: the message names option, value and bound."""
    with pytest.raises(ConfigError, match=words):
        AskedOptions(**values)


def test_a_batch_must_not_be_a_single_image_where_batch_norm_has_single_pixels():
    """Oracle: the bound of a batch of one image."""
    with pytest.raises(ConfigError, match="batch size must be at least 2 for resnet34 at 32 px, got 1"):
        AskedOptions(batch_size=1, image_size=32).resolved()


@pytest.mark.parametrize("task", Task)
def test_the_defaults_of_a_task_fill_what_was_left_open(task):
    """Oracle: the table of defaults; what was set stays."""
    of_net = Task(task.of_net)  # one net's outputs are classes, grades or findings
    data = {Task.CLASSIFICATION: "fundus-phantom", Task.SEGMENTATION: "chest-phantom"}[of_net]
    resolved = AskedOptions(data=data, task=task).resolved()
    assert {name: getattr(resolved, name) for name in DEFAULTS[of_net]} == DEFAULTS[of_net]
    assert resolved.task == task
    assert AskedOptions(data=data, epochs=77).resolved().epochs == 77
    assert resolved.labels == {Task.CLASSIFICATION: "shared", Task.SEGMENTATION: "home"}[of_net]


def test_what_must_agree_is_in_the_agreement():
    """Oracle: the list of options that change the protocol or the weights; keys and places are nobody's business."""
    options = AskedOptions(handoff_key="/secret/key", run_dir="/private/run", weights=None).resolved()
    agreement = options.agreement(2)
    assert agreement.keys() >= AGREED | {"classes", "protocol", "torch", "defence"}
    assert not agreement.keys() & {"handoff_key", "run_dir", "weights", "interface", "threads", "device"}
    assert all(isinstance(value, str) for value in agreement.values())
    assert "secret" not in str(agreement) and "private" not in str(agreement)
    assert options.agreement(5) != agreement


@pytest.mark.parametrize("name", sorted(AGREED))
def test_options_that_differ_make_another_agreement(name):
    """Oracle: the agreement of the defaults differs in this option and in no other."""
    options = AskedOptions().resolved()
    other = dataclasses.replace(options, **{name: VALUES[name]} | BESIDE.get(name, {}))
    ours, theirs = options.agreement(2), other.agreement(2)
    assert {key for key in ours if ours[key] != theirs[key]} == {name}


def test_the_path_of_the_data_may_differ_from_site_to_site(tmp_path):
    """Oracle: two paths of one kind agree."""
    one, two = (
        AskedOptions(data=f"kaggle-dr:{tmp_path}/{site}").resolved().agreement(2) for site in ("a", "b")
    )
    assert one == two and one["data"] == "kaggle-dr"


@pytest.mark.parametrize("command", [rank, train])
def test_help_lists_every_option_and_every_data_source(command):
    """Oracle: the fields, the registries of sources and schedules, and the defaults of both tasks."""
    shown = CliRunner().invoke(command, ["--help"])
    text = " ".join(shown.output.split())
    assert shown.exit_code == 0
    for option in dataclasses.fields(AskedOptions):
        assert f"--{flag(option)}" in text, option.name
    for entry in SOURCES.values():
        assert entry.name + (f":{entry.argument}" if entry.argument else "") in text
        assert entry.description[:20] in text
    for schedule in SCHEDULES.values():
        assert f"{schedule.form} {schedule.help}" in text
    assert "classification: resnet34, segmentation: unet" in text and "--config FILE.toml" in text


def test_no_augment_is_short_for_none_and_the_last_word_wins():
    """Oracle: the options that come out."""
    asked = []
    command = click.command()(run_options(lambda options: asked.append(options.augment)))
    for words in (
        ["--no-augment"],
        ["--augment", "light", "--no-augment"],
        ["--no-augment", "--augment", "xray"],
    ):
        command.main(words, standalone_mode=False)
    assert asked == ["none", "none", "xray"]
