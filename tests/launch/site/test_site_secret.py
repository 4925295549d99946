"""A site draws noise, order, augmentation and dropout from a secret of its own, with a nonce for every run.

Oracle: what it sends of one and the same batch, bit for bit; the initial weights, which only the hand-off key decides.
"""

import pytest
import torch

from suture.launch import build
from suture.launch.build import SiteOwn
from suture.launch.options.options import AskedOptions
from suture.launch.site.secret import run_secret
from suture.runtime.client.model import ClientModel
from suture.runtime.client.step import ClientStep
from suture.runtime.errors import ConfigError
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.state.handoff import part_digest

KEY = bytes(range(32))
OPTIONS = AskedOptions(
    model="resnet18", image_size=32, train_images=8, validation_images=0, test_images=2, batch_size=4, clients=1,
    augment="none", defence="noise:scale=0.5", seed=7, threads=1,
).resolved()  # fmt: skip
TURN = Turn(TurnKind.TRAIN, "ward_a", 1, 1)


@pytest.fixture(scope="module")
def images():
    torch.set_num_threads(1)
    return build.build_data(OPTIONS, build.build_site_images(OPTIONS, "ward_a"), 0)


def client(images, state, name="ward_a", run="run", own=True) -> ClientModel:
    """A site with one hand-off key and these images, whatever its name."""
    drawn = SiteOwn(run_secret(state, name, run), None, None) if own else None
    return build.build_client(OPTIONS, images, name, KEY, torch.device("cpu"), None, drawn).model


def noise(one: ClientModel) -> bytes:
    """What the defence adds to the first image of a batch that is always the same, at one place of the run."""
    batch = next(
        iter(one.data.train_batches(4, torch.Generator().manual_seed(0), lambda b: torch.Generator()))
    )
    with torch.no_grad():
        sent = ClientStep(one, TURN, batch).down()
        one.randomness.reseed("bottom", 1, "ward_a", 0)
        plain = one.bottom(batch.inputs)
    plain = plain.smashed if hasattr(plain, "smashed") else plain
    return (sent - plain).numpy().tobytes()


def order(one: ClientModel) -> list[int]:
    """The order of its training images."""
    return torch.randperm(1000, generator=one.randomness.generator("order", 1, "ward_a")).tolist()


def test_two_sites_with_one_handoff_key_draw_other_noise_and_begin_with_the_same_weights(images, tmp_path):
    """Oracle: the same batch at the same place; the control is the derivation from the shared key, which is the same."""
    sites = [
        client(images, tmp_path / folder) for folder in ("a", "b") if (tmp_path / folder).mkdir() is None
    ]
    assert part_digest(sites[0].bottom.state_dict()) == part_digest(sites[1].bottom.state_dict())
    assert noise(sites[0]) != noise(sites[1]) and order(sites[0]) != order(sites[1])
    shared = [client(images, tmp_path, own=False) for _ in range(2)]
    assert noise(shared[0]) == noise(shared[1]) and order(shared[0]) == order(shared[1])


def test_one_site_in_two_runs_of_one_seed_repeats_no_noise_and_in_a_run_that_goes_on_it_does(
    images, tmp_path
):
    """Oracle: the same batch at the same place of another run, and of the same run in another process."""
    first, second = client(images, tmp_path, run="first"), client(images, tmp_path, run="second")
    assert noise(first) != noise(second) and order(first) != order(second)
    again = client(images, tmp_path, run="first")
    assert noise(again) == noise(first) and order(again) == order(first)


def test_a_run_of_the_same_id_at_a_site_that_lost_its_nonce_draws_anew(images, tmp_path):
    """Oracle: the nonce is the site's own: who names a run twice, as a hostile server may, cannot have it drawn twice."""
    first = run_secret(tmp_path, "ward_a", "run")
    (kept,) = [path for path in tmp_path.iterdir() if path.name.startswith("ward_a-")]
    kept.unlink()
    assert run_secret(tmp_path, "ward_a", "run") != first


def test_the_secret_is_the_sites_alone(tmp_path):
    """Oracle: its mode; one that others may read is refused."""
    run_secret(tmp_path, "ward_a", "run")
    secret = tmp_path / "secret.key"
    assert secret.stat().st_mode & 0o777 == 0o600
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match="others may read it"):
        run_secret(tmp_path, "ward_a", "run")
