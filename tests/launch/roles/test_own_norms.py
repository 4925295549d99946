"""Batch norms that each client keeps to itself (``--norms local``, FedBN).

Oracle: `Unsplit`, ordinary training of one net whose norms change places as the clients do; and a run that was not
killed. Clients that train at once: tests/runtime/server/test_step_order.py.
"""

import json
from contextlib import nullcontext, suppress
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny import TINY

from suture.launch import build
from suture.launch.deploy.trained import load_trained
from suture.launch.options.options import AskedOptions, RunOptions
from suture.launch.policy.policy import Policy
from suture.launch.roles.one_process import play_locally, run_in_one_process
from suture.launch.roles.unsplit import Unsplit
from suture.launch.site.join import _options as site_options
from suture.launch.site.own_images import SiteDataConfig
from suture.runtime.errors import ConfigError, HandoffError
from suture.runtime.scheduler import Turn, TurnKind, parse_schedule
from suture.runtime.server.run_state import RunState
from suture.runtime.training.optim import step_with
from suture.runtime.wire.messages import Terms

KEY = bytes(range(32))
NORM = replace(TINY, cut="norm", clients=3, norms="local", validation_images=2)
UNET = AskedOptions(
    data="chest-phantom",
    width=4,
    image_size=32,
    train_images=4,
    validation_images=2,
    test_images=2,
    batch_size=2,
    epochs=2,
    clients=2,
    norms="local",
    exchange="local",
)
CASES = {
    "labels shared": NORM,
    "shuffled, sgd, FedProx": replace(NORM, schedule="shuffled", optimizer="sgd", prox=1.0),
    "norms in the bottom and in the head": UNET,
    "adamw, clipped": replace(NORM, optimizer="adamw", weight_decay=0.1, clip=0.1),
}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def unsplit(options: RunOptions) -> tuple[Unsplit, dict]:
    """Ordinary training and each client's scores at the end."""
    images = build.build_images(options, options.clients)
    names = [build.client_name(index) for index in range(options.clients)]
    data = {name: build.build_data(options, images, index) for index, name in enumerate(names)}
    trainer = Unsplit(options, data, KEY, len(images.source.classes))
    for round in range(1, options.epochs + 1):
        for (client,) in parse_schedule(options.schedule, options.seed).order(round, names):
            for batch in trainer.train_batches(round, client):
                trainer.train_step(round, client, batch)
    return trainer, {name: trainer.evaluate(name, options.epochs) for name in names}


@pytest.mark.parametrize("case", CASES)
def test_a_split_run_ends_as_unsplit_training_with_norms_that_change_places(case, tmp_path):
    """Oracle: unsplit training: the digest of what is shared, and each client's scores with its own norms."""
    options = CASES[case].resolved()
    trainer, scores = unsplit(options)
    ended = play_locally(options, KEY, tmp_path)
    state = ended.run_state
    assert ended.weights_sha256() == trainer.weights_sha256()
    shared, _ = unsplit(replace(options, norms="shared"))
    assert shared.weights_sha256() != trainer.weights_sha256()
    for client, own in scores.items():
        for phase in own:
            assert state.scores[client][phase] == pytest.approx(own[phase], abs=1e-6)


class Killed(BaseException):
    """The process died here."""


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("way", ["round-robin", "splitfed", "parallel"])
def test_killed_at_any_checkpoint_and_resumed(way, number, tmp_path, monkeypatch):
    """Oracle: the run that was not killed: the shared weights, and every client's scores with its own norms."""
    monkeypatch.setattr(build, "new_run_id", lambda: "run")
    options = replace(NORM, clients=2, schedule=way).resolved()
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = play_locally(options, KEY, tmp_path / "whole")
    save, saved = RunState.save, []

    def dying(run_state):
        save(run_state)
        saved.append(1)
        if len(saved) == number:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunState, "save", dying)
        with suppress(Killed):
            play_locally(options, KEY, tmp_path / "killed")
    resumed = play_locally(options, KEY, tmp_path / "killed", resume=True)
    assert resumed.weights_sha256() == whole.weights_sha256()
    assert resumed.run_state.scores == whole.run_state.scores


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two clients with norms of their own, and its folder."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run") / "run"
    options = replace(NORM, clients=2, epochs=3, run_dir=str(folder), test_images=4, sandbox="off")
    run_in_one_process(options)
    return folder


def models(run) -> list[dict]:
    return [
        torch.load(run / "clients" / name / "model.pt", weights_only=True) for name in ("client0", "client1")
    ]


@pytest.mark.parametrize("which", ["last", "best"])
def test_each_clients_norms_differ_and_the_rest_agrees(run, which):
    """Oracle: the clients' files, tensor by tensor; the digest is that of the run's summary."""
    one, two = (model[which] for model in models(run))
    for part, state in one["parts"].items():
        for name, tensor in state.items():
            own = part == "bottom" and name.startswith("norm.") and "num_batches" not in name
            assert torch.equal(tensor, two["parts"][part][name]) is not own, name
    assert one["weights_sha256"] == two["weights_sha256"]
    assert one["own_norms_sha256"] != two["own_norms_sha256"]
    if which == "last":
        assert one["weights_sha256"] == json.loads((run / "summary.json").read_text())["weights_sha256"]


def test_the_file_names_whose_norms_it_has_and_which_they_are(run):
    """Oracle: by hand; the tensors of one batch norm."""
    norm = ["bias", "num_batches_tracked", "running_mean", "running_var", "weight"]
    for name, model in zip(("client0", "client1"), models(run), strict=True):
        assert model["client"] == name
        assert model["own_norms"] == {"bottom": [f"norm.{own}" for own in norm]}


def test_a_run_whose_clients_have_different_models_must_be_told_which(run):
    """Oracle: the message; each client's folder and file load, with its own norms."""
    with pytest.raises(
        ConfigError, match=r"norms of their own .* name one: .*clients/client0, .*clients/client1$"
    ):
        load_trained(run, "best")
    loaded = [load_trained(run / "clients" / name, "last") for name in ("client0", "client1")]
    means = [model.net.joined.bottom.get_submodule("norm").running_mean for model in loaded]
    assert not torch.equal(*means)
    assert torch.equal(means[0], models(run)[0]["last"]["parts"]["bottom"]["norm.running_mean"])


@pytest.mark.parametrize("name", ["norm.weight", "first.weight"])
def test_a_file_that_was_changed_is_refused(run, name, tmp_path):
    """Oracle: one number more in a norm, and in what is shared."""
    content = models(run)[0]
    content["best"]["parts"]["bottom"][name] += 1
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ConfigError, match="weights are not those of its digest"):
        load_trained(tmp_path / "model.pt", "best")


def test_a_client_whose_norms_are_gone_does_not_go_on(tmp_path, monkeypatch):
    """Oracle: the message names the file."""
    monkeypatch.setattr(build, "new_run_id", lambda: "run")
    options = replace(NORM, clients=1).resolved()
    play_locally(options, KEY, tmp_path)
    kept = list((tmp_path / "clients" / "client0" / "norms").glob("*.pt"))
    assert len(kept) == 2
    for path in kept:
        path.write_bytes(b"other")
    with pytest.raises(HandoffError, match=r"batch norms .* are not in .*norms/.*\.pt, or damaged"):
        play_locally(replace(options, epochs=3), KEY, tmp_path, resume=True)


def test_a_damaged_checkpoint_costs_a_turn_and_no_norms(tmp_path, monkeypatch):
    """Oracle: the run that was not disturbed; the turn is trained again from the norms that belong to the one before."""
    monkeypatch.setattr(build, "new_run_id", lambda: "run")
    options = replace(NORM, clients=2).resolved()
    whole = play_locally(options, KEY, tmp_path)
    newest = max((tmp_path / "checkpoints").glob("turn_*.pt"))
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    resumed = play_locally(options, KEY, tmp_path, resume=True)
    assert resumed.weights_sha256() == whole.weights_sha256()
    assert resumed.run_state.scores == whole.run_state.scores


def test_an_undone_turn_leaves_the_norms_of_the_hand_off():
    """Oracle: norms and moments when the last hand-off was sealed."""
    options = replace(NORM, clients=1).resolved()
    images = build.build_images(options, 1)
    client = build.build_client(
        options, build.build_data(options, images, 0), "client0", KEY, torch.device("cpu"), None
    )
    client.join("run")

    def trained(number: int, amount: float) -> Turn:
        turn = Turn(TurnKind.TRAIN, "client0", round=1, number=number)
        client.begin(turn)
        step = {p: torch.full_like(p, amount) for p in client.model.parameters()}
        client.model.optimizer.zero_grad()
        step_with(client.model.optimizer, step)
        client.model.bottom.get_submodule("norm").running_mean.add_(amount)
        return turn

    def held() -> list:
        norm = client.model.bottom.get_submodule("norm")
        moments = [client.model.optimizer.state[p]["exp_avg"].clone() for p in norm.parameters()]
        return [t.clone() for t in norm.state_dict().values()] + moments

    first = client.seal(trained(1, 1.0))
    client.committed(first)
    expected = held()
    client.seal(trained(2, 5.0))
    assert not all(map(torch.equal, held(), expected))
    client.undo()
    client.open(first)
    assert all(map(torch.equal, held(), expected)) and client.holds(1)


def test_the_best_rounds_model_has_the_norms_of_that_round(tmp_path, monkeypatch):
    """Oracle: the last round of a run that ends there."""
    key = tmp_path / "key"
    key.write_text(KEY.hex() + "\n")
    key.chmod(0o600)
    keep = RunState._keep_best

    def rigged(run_state):
        for scores in run_state.scores.values():
            scores["validation"]["auroc"] = 1 / run_state.turn_log.round
        keep(run_state)

    monkeypatch.setattr(RunState, "_keep_best", rigged)
    kept = {}
    for epochs in (1, 3):
        folder = tmp_path / str(epochs)
        given = {"epochs": epochs, "run_dir": str(folder), "handoff_key": str(key), "sandbox": "off"}
        run_in_one_process(replace(NORM, clients=2, test_images=4, **given))
        kept[epochs] = models(folder)
    for short, long in zip(kept[1], kept[3], strict=True):
        assert long["best_round"] == 1
        assert long["best"]["own_norms_sha256"] == short["last"]["own_norms_sha256"]
        assert long["best"]["weights_sha256"] == short["last"]["weights_sha256"]
        assert long["last"]["own_norms_sha256"] != short["last"]["own_norms_sha256"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"cut": "act"}, "a client's parts of .*tiny_net, cut at act, have none that train"),
        ({"norms": "mine"}, "norms must be one of shared, local, got 'mine'"),
        ({"unsplit": True, "pooled": True}, "norms local does not go with pooled"),
    ],
)
def test_what_makes_no_sense_is_refused(given, words):
    """Oracle: the message."""
    with pytest.raises(ConfigError, match=words):
        replace(NORM, **given).resolved()


@pytest.mark.parametrize("norms", ["local", "shared"])
def test_a_site_that_only_evaluates_has_no_norms_of_its_own(norms):
    """Oracle: the message; where norms are shared it may join."""
    run = AskedOptions(model="resnet18", cut="3", norms=norms, clients=2).resolved()
    terms = Terms("run", run.terms())
    config = SimpleNamespace(data=SiteDataConfig(evaluate_only=True))
    asked = {"run_dir": "site", "data": "fundus-phantom"}
    with (
        nullcontext()
        if norms == "shared"
        else pytest.raises(ConfigError, match="gets its batch norms by training")
    ):
        assert site_options(asked, config, Policy(), terms).norms == "shared"


def test_frozen_norms_are_none_of_a_clients_own(tmp_path):
    """Oracle: the message."""
    path = tmp_path / "net.pt"
    torch.save({}, path)
    with pytest.raises(ConfigError, match="have none that train; cut later, freeze less"):
        replace(NORM, freeze="bottom", weights=str(path)).resolved()
