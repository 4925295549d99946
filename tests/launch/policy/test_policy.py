"""A site's policy has the last word: what a rule forbids is refused by name, whatever a server asks for.

Oracle: the rules of docs/policy.md, each with a run that it forbids and the nearest one that it lets pass; the fields of
`RunOptions`, so that a new option is refused until somebody decides what it can do.
"""

import hashlib
import sys
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest

from suture.launch.build import build_site_images
from suture.launch.options.options import SITES_OWN, AskedOptions, RunOptions
from suture.launch.policy.file import READERS
from suture.launch.policy.own_code import module_files
from suture.launch.policy.policy import Policy, evaluated_set, training_set
from suture.launch.policy.rules import HARMLESS, RULES
from suture.models import plugins
from suture.runtime.errors import ConfigError, PolicyError
from suture.threats.plugin import Entry, parameters
from suture.threats.registry import DEFENCES, DETECTORS

LUNGS = {"data": "chest-phantom", "model": "unet"}


def options(**changes) -> RunOptions:
    return AskedOptions(clients=1, **changes).resolved()


def policy(tmp_path, *lines: str) -> Policy:
    """The default file with other lines, or tables, in place of its own of the same name."""
    rules = {line.split()[0]: line for line in lines}
    text = [rules.pop(line.split(maxsplit=1)[0], line) for line in Policy.default_text().splitlines() if line]
    assert not rules
    path = tmp_path / "policy.toml"
    path.write_text("\n".join(text))
    return Policy.read(path)


def check(rules: Policy, run: RunOptions, **beside) -> None:
    rules.check(run, **{"patients": 100, "images": 100} | beside)


# The defaults -----------------------------------------------------------------------------------------


def test_the_file_that_a_site_begins_with_says_what_the_defaults_are(tmp_path):
    """Oracle: the dataclass; each rule is in the file and on its page, by its name."""
    assert policy(tmp_path) == Policy()
    page = (Path(__file__).parents[3] / "docs" / "policy.md").read_text()
    assert all(f"`{name}`" in page or f"`[{name}]`" in page for name in READERS)
    assert list(READERS) == [rule.name for rule in fields(Policy)]
    assert all(
        f"\n{name} = " in Policy.default_text() or f"\n[{name}]\n" in Policy.default_text()
        for name in READERS
    )


def test_an_empty_policy_has_the_defaults(tmp_path):
    """Oracle: the dataclass."""
    (tmp_path / "policy.toml").write_text("")
    assert Policy.read(tmp_path / "policy.toml") == Policy()


@pytest.mark.parametrize("data", ["fundus-phantom", "chest-phantom"])
def test_the_default_policy_lets_the_default_run_of_a_site_pass(data):
    """Oracle: no error. The control of every refusal below; with the patients and images that the site has."""
    run = options(data=data)
    images = build_site_images(run, "ward_a")
    patients, number = training_set(images)
    assert number == run.train_images and 1 < patients <= number
    Policy().screen(run.site_agreement(images.source.classes))
    Policy().check(run, patients=patients, images=number)


def test_patients_are_counted_once_each():
    """Oracle: by hand: three training images of two patients; a test patient does not count."""
    examples = [SimpleNamespace(patient=name) for name in "aabc"]
    images = SimpleNamespace(
        source=SimpleNamespace(examples=examples), shares=[SimpleNamespace(train=(0, 1, 2), test=(3,))]
    )
    assert training_set(images) == (2, 3)
    assert evaluated_set(images) == (1, 1)


def test_a_site_that_only_evaluates_counts_its_test_set():
    """Oracle: the message names the set."""
    with pytest.raises(
        PolicyError, match="policy least_patients: the test set must have at least 10, got 9; "
    ):
        check(Policy(), options(), patients=9, counted="test")


# No option slips through ------------------------------------------------------------------------------


def test_every_option_that_all_ranks_share_is_ruled_harmless_or_the_sites_own():
    """Oracle: the fields that are marked ``agree``; none is in two lists, and each harmless one has a reason."""
    agreed = {option.name for option in fields(AskedOptions) if option.metadata.get("agree")}
    ours = {option.name for option in fields(AskedOptions)}
    lists = [set(RULES), set(HARMLESS), set(SITES_OWN)]
    assert agreed - set(RULES) - set(HARMLESS) == agreed & set(SITES_OWN)
    assert agreed <= set.union(*lists) <= ours
    assert sum(map(len, lists)) == len(set.union(*lists))
    assert all(len(reason) > 20 for reason in HARMLESS.values())


@dataclass(frozen=True, kw_only=True)
class NewerOptions(RunOptions):
    """A version of the program with one option more."""

    mirror: str = field(default="on", metadata={"help": "a copy of everything goes there", "agree": True})


def test_an_option_that_the_policy_does_not_know_is_refused_by_name():
    """Oracle: the message; the same options without it pass."""
    check(Policy(), options())
    with pytest.raises(
        PolicyError, match="policy: there is no rule for the option mirror, so it is not taken"
    ):
        check(Policy(), NewerOptions(**vars(options())))


# Each rule --------------------------------------------------------------------------------------------

CASES = {
    "nets": ('nets = ["unet"]', {"model": "resnet18"}, LUNGS, "'resnet18' is not among unet"),
    "earliest_cut": ("", {"model": "resnet18", "cut": "2"}, {"model": "resnet18", "cut": "3"}, "resnet18 may be cut at 3 or later, got 2"),
    "labels": ('labels = "home"', {}, {"labels": "home"}, "labels must stay at home, got shared"),
    "augment": ('augment = "on"', {"augment": "none"}, {}, "images must be augmented, got --augment none"),
    "image_size": ("image_size = [32, 64]", {"image_size": 65}, {"image_size": 64}, "must lie in 32..64, got 65"),
    "width": ("width = [4, 8]", LUNGS | {"width": 9}, LUNGS | {"width": 8}, "must lie in 4..8, got 9"),
    "epochs": ("epochs = [1, 20]", {"epochs": 21}, {"epochs": 20}, "must lie in 1..20, got 21"),
    "batch_size": ("batch_size = [8, 16]", {"batch_size": 7}, {"batch_size": 8}, "must lie in 8..16, got 7"),
    "lr": ("lr = [1e-5, 1e-2]", {"lr": 0.0100001}, {"lr": 0.01}, "must lie in 1e-05..0.01, got 0.0100001"),
    "wire": ('wire = ["bf16", "int8"]', {"wire": "fp16"}, {"wire": "int8"}, "must be one of bf16, int8, got 'fp16'"),
    "release_top": ("", {"release_top": False}, {}, "the server must hand out the trained top"),
    "on_alarm": ('on_alarm = "stop"', {"detector": "splitguard"}, {"detector": "splitguard", "on_alarm": "stop"}, "an alarm must stop this site, got log; start with --on-alarm stop"),
}  # fmt: skip


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_refuses_what_it_forbids_and_lets_the_nearest_pass(rule, tmp_path):
    """Oracle: the bound in the file: on one side of it an error that names rule and value, on the other none."""
    line, forbidden, allowed, words = CASES[rule]
    rules = policy(tmp_path, *[line] if line else [])
    check(rules, options(**allowed))
    with pytest.raises(PolicyError) as refused:
        check(rules, options(**forbidden))
    assert str(refused.value).startswith(f"policy {rule}: ") and words in str(refused.value)
    assert str(refused.value).endswith("or change policy.toml at this site")


def test_a_net_that_is_listed_needs_its_cut(tmp_path):
    """Oracle: the message; the cut of a net that is not listed is no harm."""
    assert policy(tmp_path, 'nets = ["unet"]').nets == ("unet",)
    more = 'nets = ["resnet18", "resnet34", "resnet50", "unet", "torchvision:vgg11"]'
    with pytest.raises(
        ConfigError, match='earliest_cut: none for torchvision:vgg11; add "torchvision:vgg11" = CUT'
    ):
        policy(tmp_path, more)


@pytest.mark.parametrize(
    ("model", "earliest", "cut", "passes"),
    [
        ("resnet18", 3, "maxpool", True),
        ("resnet18", 3, "relu", False),
        ("resnet18", "layer1", "4", True),
        ("resnet18", "layer1", "3", False),
        ("resnet18", "layer1", "layer1.0", False),
        ("resnet18", "layer1.0", "layer1.0", True),
        ("resnet18", "layer1.0", "layer1", True),
        ("resnet18", "4", "layer2.0", True),
        ("resnet18", "5", "layer2.0", False),
        ("unet", 2, "enc2", True),
        ("unet", 2, "enc1", False),
        ("torchvision:alexnet", "features.5", "features.4", False),
        ("torchvision:alexnet", "features.5", "features.6", True),
    ],
)
def test_cuts_are_compared_by_their_place_in_the_net(model, earliest, cut, passes):
    """Oracle: the order of `suture cuts`; a number and a block's name may mean one place, and inside a layer is between."""
    data = {"data": "chest-phantom"} if model == "unet" else {}
    rules, run = Policy(nets=(model,), earliest_cut={model: earliest}), options(model=model, cut=cut, **data)
    if passes:
        check(rules, run)
        return
    with pytest.raises(
        PolicyError, match=f"policy earliest_cut: {model} may be cut at {earliest} or later, got {cut}"
    ):
        check(rules, run)


def test_a_format_is_allowed_with_any_argument():
    """Oracle: no error: the policy bounds which format, not the share that topk keeps."""
    check(Policy(), options(wire="topk:0.25"))


def test_pretrained_weights_are_refused_unless_they_are_allowed(tmp_path):
    """Oracle: the message."""
    (tmp_path / "w.pt").write_bytes(b"weights")
    run = options(weights=str(tmp_path / "w.pt"))
    with pytest.raises(PolicyError, match="policy pretrained_weights: training may not begin with --weights"):
        check(Policy(), run)
    check(Policy(pretrained_weights=True), run)


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ({"patients": 9}, "policy least_patients: the training set must have at least 10, got 9; "),
        ({"images": 19}, "policy least_images: the training set must have at least 20, got 19; "),
        ({"tls_proxy": True}, "policy tls_proxy: a proxy that ends TLS may not be used, got --tls proxy; "),
    ],
)
def test_what_is_no_option_of_the_run_has_rules_too(beside, words):
    """Oracle: the bounds of the default policy; one patient more, one image more, no proxy pass."""
    check(Policy(tls_proxy=True), options(), tls_proxy=True, patients=10, images=20)
    with pytest.raises(PolicyError, match=words):
        check(Policy(), options(), **beside)


def test_all_rules_that_a_run_breaks_are_named_at_once():
    """Oracle: a run that breaks four."""
    broken = "policy epochs: .*; policy lr: .*; policy release_top: .*; policy least_images: .*"
    with pytest.raises(PolicyError, match=f"^{broken}; ask the server's operator for another run"):
        check(Policy(), options(epochs=201, lr=1.0, release_top=False), images=1)
    with pytest.raises(PolicyError, match="policy lr: must lie in 1e-06..0.1, got nan"):
        check(Policy(), replace(options(), lr=float("nan")))


# Defences and detectors -------------------------------------------------------------------------------


def entries() -> list[Entry]:
    return [*DEFENCES.values(), *DETECTORS.values()]


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.name)
def test_every_defence_and_detector_declares_its_strength(entry):
    """Oracle: the fields of its config; what is neither strength nor neutral must be as demanded."""
    strength, names = entry.strength, {option.name for option in fields(entry.config)}
    assert strength is not None and {strength.parameter, *strength.neutral} <= names
    assert "strength" not in parameters(entry) and "strength" not in names
    least = entry.config()
    value = getattr(least, strength.parameter)
    step = 1 if isinstance(value, int) else 0.1
    higher, lower = (replace(least, **{strength.parameter: value + sign * step}) for sign in (1, -1))
    stronger, weaker = (higher, lower) if strength.stronger == "higher" else (lower, higher)
    assert strength.shortfall(least, least) == strength.shortfall(stronger, least) == ""
    assert strength.shortfall(weaker, least).startswith(f"{strength.parameter} must be at ")


@pytest.mark.parametrize(
    ("demanded", "defence", "words"),
    [
        ("dcor = 1.0", None, r"dcor \(alpha 1 or higher\) must be on, got none"),
        ("dcor = 1", "noise:scale=9", r"dcor \(alpha 1 or higher\) must be on, got noise:scale=9"),
        ("dcor = 1", "dcor:alpha=0.9", "dcor: alpha must be at least 1, got 0.9"),
        ("proxy = 0.5", "proxy:task-weight=0.6", "proxy: task_weight must be at most 0.5, got 0.6"),
        ("quantise = 3", "quantise:bits=4", "quantise: bits must be at most 3, got 4"),
        # On at full strength, and without effect: a proxy that does not learn, or counts for nothing.
        ("proxy = 0.5", "proxy:task-weight=0.5,lr=1e-12", "proxy: lr must be 0.003, got 1e-12"),
        ("proxy = 0.5", "proxy:threshold=1e-9", "proxy: threshold must be 1.0, got 1e-09"),
        ('proxy = "task-weight=0.4,steps=2"', "proxy:task-weight=0.3", "proxy: steps must be 2, got 1"),
    ],
)
def test_a_demanded_defence_must_be_on_and_strong_enough(demanded, defence, words, tmp_path):
    """Oracle: the message."""
    rules = policy(tmp_path, f"[defences]\n{demanded}")
    with pytest.raises(PolicyError, match=f"policy defences: {words}"):
        check(rules, options(defence=defence))


@pytest.mark.parametrize(
    ("demanded", "defence"),
    [
        ("dcor = 1", "dcor:alpha=1"),
        ("dcor = 1", "dcor:alpha=7"),
        ("noise = 0.5", "noise:kind=laplace,scale=0.5,clip=3"),
        ("quantise = 3", "quantise:bits=2"),
        ("dcor = 1\nnoise = 0.5", "noise:scale=0.5+dcor:alpha=1"),
        ('proxy = "task-weight=0.4,steps=2"', "proxy:task-weight=0.3,steps=2"),
        ("", "dropout:p=0.1+noise"),
    ],
)
def test_a_demanded_defence_may_be_stronger(demanded, defence, tmp_path):
    """Oracle: no error; where none is demanded any may be on."""
    check(policy(tmp_path, f"[defences]\n{demanded}"), options(defence=defence))


def test_a_second_defence_may_not_drown_the_demanded_one(tmp_path):
    """Oracle: a proxy that weighs a million times the task passes only where the policy says so."""
    run = options(defence="dcor:alpha=1+proxy:task-weight=1e-6")
    with pytest.raises(PolicyError, match="policy more_defences: no other defence .* got proxy;"):
        check(policy(tmp_path, "[defences]\ndcor = 1"), run)
    check(policy(tmp_path, "[defences]\ndcor = 1", "more_defences = true"), run)


@pytest.mark.parametrize(
    ("detector", "words"),
    [
        (None, r"splitguard \(threshold 0.7 or lower\) or gradient-scrutinizer .* must be on, got none; start with --detector splitguard"),
        ("splitguard:threshold=0.71", "splitguard: threshold must be at most 0.7, got 0.71"),
        ("splitguard:start=1000000", "splitguard: start must be 60, got 1000000"),
    ],
)  # fmt: skip
def test_one_of_the_demanded_detectors_must_be_on(detector, words, tmp_path):
    """Oracle: the message; the demanded ones themselves pass."""
    rules = policy(tmp_path, "[detectors]\nsplitguard = 0.7\ngradient-scrutinizer = 0.8")
    for allowed in ("splitguard:threshold=0.6", "gradient-scrutinizer"):
        check(rules, options(detector=allowed))
    with pytest.raises(PolicyError, match=f"policy detectors: {words}"):
        check(rules, options(detector=detector))


def test_overlap_is_refused_where_a_detector_must_be_on(tmp_path):
    """Oracle: the message: the server asks for overlap, which rules the detector out."""
    rules = policy(tmp_path, "[detectors]\nsplitguard = 0.7")
    check(Policy(), options(overlap=True))
    with pytest.raises(PolicyError, match="policy detectors: one must be on, .* got --overlap"):
        check(rules, rules.filled(options(overlap=True)))


def test_what_the_policy_demands_of_the_sites_own_side_is_filled_in(tmp_path):
    """Oracle: the first detector that fits the labels; what the person named stays, and the result passes."""
    rules = policy(tmp_path, "[detectors]\nsplitguard = 0.6\ngradient-scrutinizer = 0.8", 'on_alarm = "stop"')
    shared, home = rules.filled(options()), rules.filled(options(labels="home"))
    assert shared.detector == "splitguard:threshold=0.6" and home.detector == "gradient-scrutinizer"
    named = rules.filled(options(detector="gradient-scrutinizer:threshold=0.5"))
    assert named.detector == "gradient-scrutinizer:threshold=0.5"
    for run in (shared, home, named):
        assert run.on_alarm == "stop"
        check(rules, run)
    assert Policy().filled(options()) == options()
    assert rules.filled(options(**LUNGS)).detector is None  # no detector fits: `check` refuses


# What a server says -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"sandbox": "off"}, "the server set sandbox, which is for this site alone to say; refused"),
        ({"handoff_key": "/etc/passwd"}, "the server set handoff_key, which is for this site alone"),
        ({"detector": "none"}, "the server set detector, which is for this site alone"),
        ({"data": "kaggle-dr:/"}, "the server set data, which is for this site alone"),
        ({"train_images": "1"}, "the server set train_images, which is for this site alone"),
        (
            {"epoch": "3"},
            "the server set 'epoch', .* does not know .did you mean epochs.*; refused: the same suture",
        ),
        ({"\x1b[2Jx": ""}, r"the server set '\\x1b\[2Jx', an option"),
        ({"lr": 3}, "the server set lr to a int, not a text"),
    ],
)
def test_a_server_may_set_no_option_that_is_not_the_runs(said, words):
    """Oracle: the message; what `site_agreement` holds passes."""
    agreement = options().site_agreement(("no", "yes"))
    Policy.unknown(agreement)
    with pytest.raises(PolicyError, match=f"policy: {words}"):
        Policy.unknown(agreement | said)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"sandbox": "off"}, "the server set sandbox, which is for this site alone"),
        ({"model": "module:shutil:rmtree"}, "nets: 'module:shutil:rmtree' is code of one's own that is not listed"),
        ({"model": "torchvision:vgg19"}, "nets: 'torchvision:vgg19' is not among resnet18, resnet34"),
        ({"image_size": "1000000000"}, r"image_size: must lie in 16..512, got 1e\+09"),
        ({"epochs": "9" * 5000}, "epochs: must lie in 1..200, got inf"),
        ({"lr": "nan"}, "lr: must lie in 1e-06..0.1, got nan"),
        ({"batch_size": "many"}, "batch_size: must be a number, got 'many'"),
    ],
)  # fmt: skip
def test_what_a_server_says_is_screened_before_an_option_is_made_of_it(said, words, monkeypatch):
    """Oracle: the message, while nothing may be built; the agreement of the default run passes."""
    agreement, rules = options().site_agreement(("no", "yes")), Policy()
    monkeypatch.setattr(
        "suture.models.registry.model_entry", lambda name: pytest.fail(f"{name} was looked up")
    )
    rules.screen(agreement)
    with pytest.raises(PolicyError, match=f"policy:? {words}"):
        rules.screen(agreement | said)


def test_the_digest_of_weights_is_part_of_an_agreement(tmp_path):
    """Oracle: `site_agreement` of a run with --weights passes as far as names go."""
    (tmp_path / "w.pt").write_bytes(b"weights")
    Policy.unknown(options(weights=str(tmp_path / "w.pt")).site_agreement(("no", "yes")))


NET = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
from torch import nn
def make(num_outputs):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_outputs))
"""


@pytest.fixture
def own_net(tmp_path, monkeypatch):
    """A file of one's own below the current folder; returns it and what ``--model`` calls it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = tmp_path / f"nets_{tmp_path.name}" / "small.py"
    file.parent.mkdir()
    file.write_text(NET)
    return file, f"module:{file.parent.name}.small:make"


def sha256(file) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_own_code_runs_only_where_its_name_and_its_digest_are_listed(own_net):
    """Oracle: a file that leaves a mark when it runs; no mark before the policy agreed, and none once it was changed."""
    file, model = own_net
    ran = file.with_name("ran")
    with pytest.raises(
        PolicyError, match="policy nets: 'module:nets_.*' is code of one's own that is not listed"
    ):
        Policy().check_code(model)
    named = Policy(nets=(model,), earliest_cut={model: "1"})
    with pytest.raises(
        PolicyError, match=f"policy own_code: .* would run {file}, whose SHA-256 {sha256(file)} is not"
    ):
        named.check_code(model)
    allowed = replace(named, own_code=(sha256(file).upper(),))
    allowed.check_code(model)
    assert not ran.exists()
    run = options(model=model, cut="1")
    assert ran.exists()
    check(allowed, run)
    with pytest.raises(
        PolicyError, match="policy earliest_cut: module:nets_.* may be cut at 1 or later, got 0"
    ):
        check(allowed, replace(run, cut="0"))
    file.write_text(NET + "# changed\n")
    for refuses in (lambda: allowed.check_code(model), lambda: check(allowed, run)):
        with pytest.raises(PolicyError, match=f"whose SHA-256 {sha256(file)} is not listed"):
            refuses()


def test_a_packages_own_code_runs_too_and_must_be_listed(own_net):
    """Oracle: an ``__init__`` that leaves a mark; an empty one runs nothing."""
    file, model = own_net
    first = file.with_name("__init__.py")
    first.write_text("")
    allowed = Policy(nets=(model,), earliest_cut={model: "1"}, own_code=(sha256(file),))
    allowed.check_code(model)
    first.write_text(NET + "# a package's\n")
    with pytest.raises(PolicyError, match=f"would run {first}, whose SHA-256"):
        allowed.check_code(model)
    replace(allowed, own_code=(sha256(file), sha256(first))).check_code(model)
    assert module_files(f"{file.parent.name}.small") == [first, file]
    assert not file.with_name("ran").exists()


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("sys", "'sys' is a module of Python itself"),
        ("builtins", "'builtins' is a module of Python itself"),
        ("os", "'os' is a module of Python itself"),
        ("shutil", "would run .*shutil.py, whose SHA-256"),
        ("no_such_module", "there is no module 'no_such_module' at this site"),
        ("shutil.rmtree", "there is no module 'shutil.rmtree'"),
        ("..", "'..' is no name of a module"),
        ("a/b", "'a/b' is no name of a module"),
    ],
)
def test_a_module_that_is_on_this_machine_anyway_is_no_net(module, words):
    """Oracle: the message, even where a policy lists the name."""
    model = f"module:{module}:system"
    with pytest.raises(PolicyError, match=f"policy own_code: .*{words}"):
        Policy(nets=(model,), earliest_cut={model: 1}).check_code(model)


DEFENCE = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
from dataclasses import dataclass
from typing import ClassVar
from suture.runtime.hooks import Defence, Detector
from suture.threats.strength import Strength
@dataclass(frozen=True)
class Config:
    strength: ClassVar[Strength] = Strength(parameter="scale", stronger="higher")
    scale: float = 1.0
class Shield(Defence):
    def __init__(self, config: Config, view: object) -> None: ...
class Guard(Detector):
    def __init__(self, config: Config, view: object) -> None: ...
"""


@pytest.fixture
def own_defence(tmp_path, monkeypatch):
    """A file with a defence and a detector of one's own; returns it and what ``--defence`` calls it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = tmp_path / "guards" / "shield.py"
    file.parent.mkdir()
    file.write_text(DEFENCE)
    return file, "module:guards/shield.py:Shield"


@pytest.mark.parametrize("chain", ["{}", "{}:scale=2", "dcor+{}", " {}+noise:scale=1e+2"])
def test_a_defence_that_a_server_names_runs_only_where_the_site_demands_it_and_lists_its_file(
    chain, own_defence, tmp_path
):
    """Oracle: a file that leaves a mark when it runs; no mark before the policy agreed, and none once it was changed."""
    file, name = own_defence
    said = options().site_agreement(("no", "yes")) | {"defence": chain.format(name)}
    with pytest.raises(
        PolicyError, match="policy defences: 'module:guards/shield.py:Shield' is code of one's own"
    ):
        Policy().screen(said)
    demanded = ["more_defences = true", f'[defences]\n"{name}" = 1.0']
    with pytest.raises(ConfigError, match=f"would run guards/shield.py, whose SHA-256 {sha256(file)} is not"):
        policy(tmp_path, *demanded)
    assert not file.with_name("ran").exists()
    allowed = policy(tmp_path, *demanded, f'own_code = ["{sha256(file)}"]')
    assert file.with_name("ran").exists()
    allowed.screen(said)
    run = options(defence=chain.format(name))
    check(allowed, run)
    with pytest.raises(PolicyError, match="Shield: scale must be at least 1, got 0.5"):
        check(allowed, options(defence=f"{name}:scale=0.5"))
    file.write_text(DEFENCE + "# changed\n")
    for refuses in (lambda: allowed.screen(said), lambda: check(allowed, run)):
        with pytest.raises(PolicyError, match=f"whose SHA-256 {sha256(file)} is not listed"):
            refuses()


@pytest.mark.parametrize("name", ["attack", "detector", "schedule", "data"])
def test_a_server_can_name_no_other_code(name, own_defence):
    """Oracle: the message; the file did not run."""
    file, _ = own_defence
    with pytest.raises(
        PolicyError, match=f"policy: the server set {name}, which is for this site alone to say"
    ):
        Policy().screen({name: "module:guards/shield.py:Guard"})
    assert not file.with_name("ran").exists()


def test_a_site_may_demand_a_detector_of_its_own(own_defence, tmp_path):
    """Oracle: the run is filled with it; its file must be listed."""
    file, _ = own_defence
    name = "module:guards/shield.py:Guard"
    with pytest.raises(ConfigError, match="detectors: policy own_code: .* would run guards/shield.py"):
        policy(tmp_path, f'[detectors]\n"{name}" = 0.5')
    rules = policy(tmp_path, f'[detectors]\n"{name}" = 0.5', f'own_code = ["{sha256(file)}"]')
    assert rules.filled(options()).detector == f"{name}:scale=0.5"


def test_an_entry_point_that_a_server_names_is_code_of_ones_own_too(own_defence, monkeypatch):
    """Oracle: an installed package, faked: its bare name is refused, and the file did not run."""
    file, _ = own_defence
    point = EntryPoint("shield", f"{file.parent.name}.shield:Shield", "suture.defences")
    monkeypatch.setattr(plugins, "_installed", lambda kind: {"shield": point})
    for option in ("defence", "model"):
        with pytest.raises(PolicyError, match="'shield' is code of one's own that is not listed"):
            Policy().screen({option: "shield"})
    with pytest.raises(PolicyError, match=f"shield would run {file}, whose SHA-256"):
        Policy(nets=("shield",), earliest_cut={"shield": 1}).screen({"model": "shield"})
    assert not file.with_name("ran").exists()
    assert DEFENCES.parse("shield:scale=3").config.scale == 3 and file.with_name("ran").exists()


# The file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ernliest_cut = 3", "unknown rule 'ernliest_cut'; did you mean earliest_cut?"),
        ("batch-size = [1, 2]", "unknown rule 'batch-size'; did you mean batch_size?"),
        ("[earliest_cut]\nresnet43 = 3", "earliest_cut: unknown net 'resnet43'; did you mean resnet34?"),
        ("zzz = 1", "unknown rule 'zzz'; known: nets, earliest_cut, own_code, .*least_images"),
        ("earliest_cut = 3", "earliest_cut: must name a cut for each net, a number or a block's name, got 3"),
        ("[earliest_cut]\nresnet34 = true", "earliest_cut: must name a cut for each net"),
        ('nets = "unet"', 'nets: must be a list of texts, .*got \'unet\''),
        ('nets = ["unte"]', "nets: unknown net 'unte'; did you mean unet?"),
        ('nets = ["unet"]\n[earliest_cut]\nunet = 9', "earliest_cut: cut must lie in 1..4 for unet, got 9"),
        ('nets = ["unet"]\n[earliest_cut]\nunet = "fc"', "earliest_cut: cut must name a block of unet, got 'fc'; known: enc1"),
        ('own_code = ["abc"]', "own_code: must be SHA-256 in 64 hexadecimal digits, got 'abc'"),
        ("release_top = 1", "release_top: must be true or false, got 1"),
        ('labels = "shared"', "labels: must be one of any, home, got 'shared'"),
        ('on_alarm = "run"', "on_alarm: must be one of log, stop, got 'run'"),
        ("lr = 0.1", r"lr: must be two numbers, \[lowest, highest\], got 0.1"),
        ("lr = [0.1, 0.01]", "lr: must be two numbers"),
        ("lr = [nan, 1]", "lr: must be two numbers"),
        ("epochs = [1, true]", "epochs: must be two numbers"),
        ("repeats = 1.5", "repeats: must be a whole number, got 1.5"),
        ("repeats = -1", "repeats: must be at least 0, got -1"),
        ('wire = ["fp33"]', "wire: unknown format 'fp33'; did you mean fp32?"),
        ("[defences]\ndecor = 1", "defences: unknown defence 'decor'; did you mean dcor?"),
        ("[defences]\ndcor = -1", "defences: defence dcor: alpha must be at least 0, got -1"),
        ("[defences]\ndcor = true", r"defences: dcor must be a number \(alpha\) or its parameters, got True"),
        ('[defences]\ndcor = "beta=1"', "defences: defence dcor: unknown parameter 'beta=1'; known: alpha=0.5"),
        ("defences = 1", "defences: must be a table of defences"),
        ("[detectors]\nsplitgard = 1", "detectors: unknown detector 'splitgard'; did you mean splitguard?"),
        ("repeats = ", "cannot read the policy"),
    ],
)  # fmt: skip
def test_a_policy_that_cannot_work_is_refused_by_file_rule_and_value(text, words, tmp_path):
    """Oracle: the message; a mistake in the file is not a run that the policy forbids."""
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(ConfigError, match=words) as refused:
        Policy.read(tmp_path / "policy.toml")
    assert "policy.toml" in str(refused.value) and not isinstance(refused.value, PolicyError)


def test_a_policy_that_is_not_there_is_refused(tmp_path):
    """Oracle: the message names the file."""
    with pytest.raises(ConfigError, match="cannot read the policy .*nowhere.toml: "):
        Policy.read(tmp_path / "nowhere.toml")
