"""What must stay with the clients stays there: bottoms, heads, images, labels and skips never reach the server.

Oracle: the bytes themselves. Every value that a client computed in a whole run is looked for in everything that
the server was sent, holds and writes; each search is shown to find what it may find (the top, the smashed data).
"""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from suture.launch import build
from suture.launch.options.options import AskedOptions
from suture.launch.roles.one_process import play_locally
from suture.runtime.client.step import ClientStep
from suture.runtime.exchange import LocalExchange
from suture.runtime.randomness import PUBLIC, Randomness
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.state.checkpoint import read_checkpoint
from suture.runtime.wire.messages import Upload

KEY, OTHER = bytes(range(32)), bytes(32)
SMALL = {"image_size": 32, "validation_images": 1, "test_images": 2, "epochs": 1, "clients": 2, "seed": 5}
CASES = {
    "resnet": SMALL
    | {"model": "resnet18", "train_images": 4, "batch_size": 2, "validation_images": 2, "optimizer": "sgd"},
    "unet": SMALL
    | {"data": "chest-phantom", "model": "unet", "width": 3, "cut": "2", "train_images": 4, "batch_size": 2},
    "at-once": SMALL
    | {
        "model": "resnet18",
        "train_images": 4,
        "batch_size": 2,
        "validation_images": 2,
        "schedule": "splitfed",
    },
}
SHORT = 16  # elements: fewer occur by accident, such as a scalar or a class count


def fingerprints(tensors) -> set[bytes]:
    """Sixteen values from within every tensor that has as many, from where they are not all alike."""
    found = set()
    for tensor in tensors:
        values = tensor.detach().contiguous().view(-1)
        windows = values[: len(values) // SHORT * SHORT].view(-1, SHORT)
        # Not from the beginning: a photograph of an eye is black in its corners, and rectified data have gaps.
        later = torch.cat([windows[len(windows) * 3 // 8 :], windows[: len(windows) * 3 // 8]])
        for window in later:
            if len(window.unique()) > 4:
                found.add(window.numpy().tobytes())
                break
    return found


def tensors_within(thing, seen=None):
    """Every tensor that can be reached from ``thing`` through attributes, slots, keys, items and closures."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, (str, bytes, int, float, type, type(torch))):
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing.detach()
        if thing.grad is not None:
            yield thing.grad
        return
    if isinstance(thing, dict):
        inner = [*thing.keys(), *thing.values()]
    elif isinstance(thing, (list, tuple, set, frozenset)):
        inner = list(thing)
    else:
        slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
        inner = [getattr(thing, name, None) for name in slots] + list(getattr(thing, "__dict__", {}).values())
        inner += [cell.cell_contents for cell in getattr(thing, "__closure__", None) or ()]
        inner += [getattr(thing, "__self__", None)]
    for item in inner:
        yield from tensors_within(item, seen)


@pytest.fixture(scope="module", params=CASES)
def spied(request, tmp_path_factory):
    """A whole run, and every value that its clients had at any time."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param)
    options = AskedOptions(**CASES[request.param]).resolved()
    noted = SimpleNamespace(
        messages=[], uploads=[], parts=[], skips=[], inputs=[], smashed=[], targets=[], clients=[], gradients=[],
        folder=folder, options=options,
    )  # fmt: skip
    real_build, real_call, real_join = build.build_client, LocalExchange.begin, LocalExchange.join
    real_step, real_learn = ClientStep.__init__, ClientStep.learn

    def note_client(*args, **more):
        client = real_build(*args, **more)
        noted.clients.append(client)

        def passed(part, inputs, output):
            noted.inputs.append(inputs[0].detach().clone())
            noted.smashed.append(output.smashed.detach().clone())
            noted.skips += [skip.detach().clone() for skip in output.skips]

        client.model.bottom.register_forward_hook(passed)
        return client

    def note_step(step, client, turn, batch, *how):
        noted.targets.append(batch.targets)
        real_step(step, client, turn, batch, *how)

    def note_learn(step, gradients):
        noted.gradients += [gradients[p].clone() for p in step.client.parameters() if p in gradients]
        real_learn(step, gradients)

    def note_call(exchange, endpoint, *args, **how):
        noted.messages.append((endpoint.__name__, pickle.dumps(args)))
        noted.uploads += [arg for arg in args if isinstance(arg, Upload)]
        for client in noted.clients:
            for part in (client.model.bottom, client.model.head):
                noted.parts += [] if part is None else [t.clone() for t in part.state_dict().values()]
        return real_call(exchange, endpoint, *args, **how)

    def note_join(exchange, *args):
        noted.messages.append(("hello", pickle.dumps(args)))
        return real_join(exchange, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalExchange, "join", note_join)
        patch.setattr(build, "build_client", note_client)
        patch.setattr(ClientStep, "__init__", note_step)
        patch.setattr(ClientStep, "learn", note_learn)
        patch.setattr(LocalExchange, "begin", note_call)
        # A loss and its graph are the exchange's in one process; over RPC they stay in each side's context.
        noted.coordinator = play_locally(options, KEY, folder)
    return noted


def secrets(noted) -> dict[str, set[bytes]]:
    """What no byte of the server may hold."""
    optimizers = [
        list(tensors_within(client.model.optimizer.state_dict()["state"])) for client in noted.clients
    ]
    return {
        "weights of bottom or head": fingerprints(noted.parts),
        "their optimizer's state": fingerprints(tensor for state in optimizers for tensor in state),
        "their gradients": fingerprints(noted.gradients),
        "images": fingerprints(noted.inputs),
        "skips": fingerprints(noted.skips),
    }


def test_the_run_had_secrets_to_keep(spied):
    """Oracle: a control of the searches below: there is something of each kind to be found."""
    kinds = secrets(spied)
    assert len(kinds["weights of bottom or head"]) > 8 and len(kinds["images"]) >= 6
    assert len(kinds["their optimizer's state"]) > 2 and len(kinds["their gradients"]) > 4
    assert bool(kinds["skips"]) == (spied.options.model == "unet")
    names = {name for name, _ in spied.messages}
    assert names >= {"hello", "train", "predict", "commit", "report", "finish", "fetch", "leave"}


def test_the_server_holds_nothing_of_a_clients(spied):
    """Oracle: all tensors reachable from the coordinator, beside the top's, which the same search finds."""
    held = fingerprints(tensors_within(spied.coordinator))
    tops = fingerprints(spied.coordinator.run_state.server.top.state_dict().values())
    assert len(tops) > 3 and tops <= held
    for what, values in secrets(spied).items():
        assert not values & held, f"the server holds {what}"


def test_the_servers_checkpoints_hold_nothing_of_a_clients(spied):
    """Oracle: every tensor in every checkpoint; the top's are found there."""
    kept = spied.folder / "checkpoints"
    assert len(list(kept.iterdir())) >= 2
    tops = fingerprints(spied.coordinator.run_state.server.top.state_dict().values())
    for path in kept.iterdir():
        held = fingerprints(tensors_within(read_checkpoint(path)))
        assert len(held & tops) > 3, "the search finds nothing"
        for what, values in secrets(spied).items():
            assert not values & held, f"{path.name} holds {what}"


def test_no_byte_on_the_servers_disk_is_of_a_bottom(spied):
    """Oracle: the raw bytes of the newest checkpoint and of every small file; the tops' are found there."""
    files = [path for path in spied.folder.rglob("*") if path.is_file() and path.suffix != ".pt"]
    newest = max((spied.folder / "checkpoints").glob("turn_*.pt"))
    hidden = fingerprints(
        t for client in spied.clients for t in client.model.bottom.state_dict().values()
    ) | {KEY}
    tops = fingerprints(spied.coordinator.run_state.server.top.state_dict().values())
    data = newest.read_bytes()
    assert len(hidden) > 2 and all(top in data for top in tops)
    for path in [newest, *files]:
        data = path.read_bytes()
        assert not any(value in data for value in hidden), f"{path.name} holds a client's secret"


def test_nothing_of_a_clients_is_sent(spied):
    """Oracle: every argument of every call, pickled; the smashed data are found there."""
    sent = [message for _, message in spied.messages]
    smashed = fingerprints(spied.smashed)
    assert len(smashed) >= 8 and all(any(value in message for message in sent) for value in smashed)
    for what, values in secrets(spied).items():
        assert not any(value in message for message in sent for value in values), f"{what} were sent"


def test_labels_leave_only_where_they_are_shared_and_only_in_training(spied):
    """Oracle: the uploads; where labels are at home, no upload has any and no mask is in any message."""
    home = spied.options.labels == "home"
    assert home == (spied.options.model == "unet")
    for upload in spied.uploads:
        assert (upload.labels is not None) == (upload.phase == "train" and not home)
    if home:
        assert all(len(mask.unique()) == 2 for mask in spied.targets), "a mask of one value proves nothing"
        for kind in (torch.float32, torch.uint8, torch.bool):
            masks = [mask[0].to(kind).numpy().tobytes() for mask in spied.targets]
            assert not any(mask in message for mask in masks for _, message in spied.messages)
    else:
        trained = [upload.labels for upload in spied.uploads if upload.phase == "train"]
        assert all(torch.equal(*pair) for pair in zip(trained, spied.targets, strict=True))


def test_clients_refuse_to_be_copied_or_sent(spied):
    """Oracle: TypeError for a client and its images."""
    for private, words in (
        (spied.clients[0], "a Client holds images"),
        (spied.clients[0].model.data, "images stay"),
    ):
        for copying in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match=words):
                copying(private)


# The public seed -----------------------------------------------------------------------------------


def _initial(secret: bytes, **changes) -> dict[str, set[bytes]]:
    options = AskedOptions(**CASES["unet"] | changes).resolved()
    parts = build.build_split(options, 2, secret).parts()
    return {name: fingerprints(part.state_dict().values()) for name, part in parts.items()}


def test_initial_weights_of_the_hidden_parts_follow_from_the_key_and_the_tops_from_the_seed():
    """Oracle: two keys give no common tensor in bottom and head and the same top; another seed, nothing common."""
    one, two, server = _initial(KEY), _initial(OTHER), _initial(PUBLIC)
    assert one == _initial(KEY) and all(one.values())
    assert one["top"] == two["top"] == server["top"]
    for part in ("bottom", "head"):
        assert not one[part] & two[part] and not one[part] & server[part]
    elsewhere = _initial(KEY, seed=6)
    assert not any(one[part] & elsewhere[part] for part in one)


def test_the_servers_own_copy_of_the_hidden_parts_is_thrown_away():
    """Oracle: all that can be reached from a server that was just built is top, and as large as the top."""
    options = AskedOptions(**CASES["unet"]).resolved()
    server = build.build_server(options, 2, torch.device("cpu"))
    split = build.build_split(options, 2, PUBLIC)
    held = fingerprints(tensors_within(server))
    assert held == fingerprints(split.top.state_dict().values())
    assert not held & fingerprints([*split.bottom.state_dict().values(), *split.head.state_dict().values()])


def test_the_order_of_images_and_their_augmentation_follow_from_the_key():
    """Oracle: two keys under one seed; the same key again repeats the inputs bit for bit."""
    options = AskedOptions(**CASES["unet"] | {"train_images": 8}).resolved()
    images = build.build_images(options, 1)
    data = build.build_data(options, images, 0)

    def turn(key):
        client = build.build_client(options, data, "client0", key, torch.device("cpu"), None)
        batches = list(client.model.batches(Turn(TurnKind.TRAIN, "client0", 1, 1)))
        return [key for batch in batches for key in batch.keys], torch.cat(
            [batch.inputs for batch in batches]
        )

    order, inputs = turn(KEY)
    assert turn(KEY)[0] == order and torch.equal(turn(KEY)[1], inputs)
    other, others = turn(OTHER)
    assert order != other and sorted(order) == sorted(other)
    rows = {key: row for row, key in enumerate(other)}
    assert not any(torch.equal(inputs[row], others[rows[key]]) for row, key in enumerate(order))


@pytest.mark.parametrize("purpose", ["bottom", "head", "order", "augment", "initial weights", "fake batch"])
def test_no_hidden_draw_follows_from_the_public_secret(purpose):
    """Oracle: what the server can derive itself, for the same purpose, place and seed."""
    place = (purpose, 1, "client0", 0)
    drawn = {Randomness(secret, 5).derive(32, *place) for secret in (KEY, OTHER, PUBLIC)}
    assert len(drawn) == 3
