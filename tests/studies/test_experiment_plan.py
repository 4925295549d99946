"""What an experiment plans: sizes by budget, runs by arm and seed, a setting that is read back as written.

Oracle: worked out by hand from the definition of each experiment; messages for people.
"""

from dataclasses import replace

import pytest

from suture.runtime.errors import ConfigError
from suture.studies.experiments.engine.plan import Request, plan, setting_of
from suture.studies.experiments.engine.run import run_experiments
from suture.studies.experiments.registry import EXPERIMENTS, STUDY, chosen
from suture.studies.experiments.runs.setting import Setting, expanded, read_setting, to_toml, with_data
from suture.studies.experiments.runs.sizes import largest_effort, minutes

SMOKE = ["fundus-phantom", "chest-phantom"]


def _planned(name: str, **asked) -> Setting:
    return plan(EXPERIMENTS[name], Request(**{"name": name, "scale": "smoke"} | asked))


def _on_drawn_images(name: str, **asked) -> Setting:
    """Scale laptop on drawn images, so that no test needs real ones."""
    data = ("photographs=fundus-phantom", "lungs=chest-phantom", "digits=fundus-phantom")
    return _planned(name, **{"scale": "laptop", "data": data} | asked)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_runs_have_names_of_their_own_and_checks_name_runs_that_exist(name):
    """Oracle: names are folders, so each is there once; one run is repeated with real processes."""
    jobs = EXPERIMENTS[name].jobs(_planned(name, num_seeds=2))
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    assert {job.same_weights_as for job in jobs} <= {*names, ""}
    repeated = [job.options.exchange for job in jobs if job.arm.endswith("-processes")]
    assert set(repeated) <= {"fused"}
    assert len(repeated) == 1 or EXPERIMENTS[name] not in STUDY
    for job in jobs:  # the weights are a file that the worker finds or makes
        replace(job.options, weights=None, freeze=None).resolved()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_larger_budget_never_plans_less(name):
    """Oracle: the cost of the plan grows with the budget and stays within it; the same budget, the same plan."""
    costs = []
    for budget in (60.0, 120.0, 240.0):
        setting = _on_drawn_images(name, budget=budget)
        costs.append(minutes(EXPERIMENTS[name].jobs(setting)))
        assert costs[-1] <= budget
        assert _on_drawn_images(name, budget=budget).sizes == setting.sizes
    assert costs == sorted(costs)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_too_small_a_budget_is_refused_with_the_smallest_that_works(name):
    """Oracle: the budget that the message names works, one minute less does not."""
    with pytest.raises(ConfigError, match=r"is too small for .*; the smallest that works is \d+$") as refused:
        _on_drawn_images(name, budget=0.5)
    least = float(str(refused.value).split()[-1])
    _on_drawn_images(name, budget=least)
    with pytest.raises(ConfigError, match="too small"):
        _on_drawn_images(name, budget=least - 1)


def test_the_largest_effort_that_fits_is_chosen():
    """Oracle: bare numbers of equal jobs; half of the budget is half of the effort."""
    job = EXPERIMENTS["unet-cut"].jobs(_planned("unet-cut"))[0]
    one = minutes([job])
    assert largest_effort("x", lambda effort: [job] * effort, 20.5 * one) == 20
    assert largest_effort("x", lambda effort: [job] * effort, 20.5 * one, share=0.5) == 10


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(name="cut-depth"), "experiment must be one of cut-layer, .*, all; got 'cut-depth'"),
        (Request(name="fsha", scale="huge"), "scale must be one of laptop, full, smoke, got 'huge'"),
        (Request(name="fsha", scale="smoke", budget=5.0), "budget goes with --scale laptop"),
        (Request(name="fsha", budget=-1.0), "budget must be above 0 minutes, got -1.0"),
        (Request(name="fsha", scale="smoke", num_seeds=0), "seeds must be at least 1, got 0"),
        (Request(name="fsha", scale="smoke", data=("eyes=fundus-phantom",)), "role must be one of photographs"),
        (Request(name="fsha", scale="smoke", exchange="pigeon"), "exchange must be local or fused"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_is_run(request_, message, tmp_path):
    """Oracle: the message; nothing is written."""
    with pytest.raises(ConfigError, match=message):
        run_experiments(replace(request_, out=tmp_path / "e"))
    assert not (tmp_path / "e").exists()


def test_without_the_sets_the_variable_is_asked_for(monkeypatch):
    """Oracle: SUTURE_DATA is not set and a default needs it."""
    monkeypatch.delenv("SUTURE_DATA", raising=False)
    with pytest.raises(ConfigError, match=r"\$SUTURE_DATA, which is not set"):
        _planned("cut-layer", scale="laptop")


def test_data_goes_to_the_role_that_it_fits():
    """Oracle: by the source's task; a role that is named wins; the rest keeps its default."""
    given = with_data(("kaggle-cxr:/x", "medmnist:/y.npz", "fundus-phantom"), "laptop")
    assert given == {"photographs": "fundus-phantom", "lungs": "kaggle-cxr:/x", "digits": "medmnist:/y.npz"}
    assert with_data(("photographs=medmnist:/z.npz",), "smoke") == {
        "photographs": "medmnist:/z.npz", "lungs": SMOKE[1], "digits": SMOKE[0],
    }  # fmt: skip


def test_a_setting_is_read_back_as_it_was_written(tmp_path, monkeypatch):
    """Oracle: equality, keys included; variables in paths stay variables until the data are opened."""
    monkeypatch.setenv("SUTURE_DATA", "/somewhere")
    for name in EXPERIMENTS:
        setting = _planned(name, data=("kaggle-dr:$SUTURE_DATA/idrid",), num_seeds=2)
        path = tmp_path / "config.toml"
        path.write_text(to_toml(setting))
        assert read_setting(path) == setting and len(setting.keys) == 2
    assert expanded("kaggle-dr:$SUTURE_DATA/idrid") == "kaggle-dr:/somewhere/idrid"


def test_another_setting_in_the_same_folder_is_refused(tmp_path):
    """Oracle: a config.toml of drawn photographs; others are asked for, and fewer seeds."""
    (tmp_path / "config.toml").write_text(to_toml(_planned("fsha", num_seeds=2)))
    for asked in ({"data": ("digits=mnist:/x",)}, {"num_seeds": 1}, {"exchange": "fused"}):
        with pytest.raises(ConfigError, match="holds fsha with another setting"):
            run_experiments(
                Request(**{"name": "fsha", "scale": "smoke", "num_seeds": 2, "out": tmp_path} | asked)
            )


def test_more_seeds_keep_the_sizes_and_the_keys_of_those_that_were_run(tmp_path):
    """Oracle: the setting that was written; a larger number of seeds at the same budget would plan smaller runs."""
    before = _on_drawn_images("unet-cut", budget=12.0, num_seeds=1)
    (tmp_path / "config.toml").write_text(to_toml(before))
    data = ("photographs=fundus-phantom", "lungs=chest-phantom", "digits=fundus-phantom")
    asked = Request(name="unet-cut", data=data, budget=12.0, num_seeds=3, out=tmp_path)
    assert plan(EXPERIMENTS["unet-cut"], asked).sizes != before.sizes
    setting, folder = setting_of(EXPERIMENTS["unet-cut"], asked)
    assert folder == tmp_path and setting.sizes == before.sizes and setting.num_seeds == 3
    assert setting.keys[0] == before.keys[0] and len(set(setting.keys.values())) == 3


@pytest.mark.parametrize("text", ["experiment = 3", "= broken", 'experiment = "fsha"\n[sizes]\n[keys]\n'])
def test_a_damaged_setting_is_named(tmp_path, text):
    """Oracle: the file's name in a message for people."""
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=str(path)):
        read_setting(path)


# What the controls hold fixed ------------------------------------------------------------------------


def test_the_controls_of_clients_hold_fixed_what_they_say():
    """Oracle: images and updates worked out from each run's own options."""
    jobs = EXPERIMENTS["clients"].jobs(_on_drawn_images("clients", budget=60.0, num_seeds=1))
    found = {}
    for job in jobs[:-1]:
        images = job.options.clients * job.options.train_images
        batches = -(-job.options.train_images // job.options.batch_size)
        updates = batches * job.options.clients * job.options.epochs
        assert (images, updates) == (job.facts["images"], job.facts["updates"])
        found[job.arm] = (images, updates)
    images, updates = found["published-6"]
    for count in (1, 3):
        assert found[f"images-{count}"] == (images, updates)
        assert found[f"updates-{count}"] == (images * count // 6, updates)
        assert found[f"published-{count}"] == (images * count // 6, updates * count // 6)


def test_full_sizes_are_the_studys():
    """Oracle: the study: 1,000 training and 200 test images a client, 20 epochs, 224 px; 560 / 140 at 256 px."""
    for name in ("cut-layer", "split-vs-central"):
        (sizes,) = EXPERIMENTS[name].sizes("full", 1).values()
        assert (sizes.train_images, sizes.test_images, sizes.rounds, sizes.image_size) == (1000, 200, 20, 224)
    (clients,) = EXPERIMENTS["clients"].sizes("full", 1).values()
    assert (clients.train_images, clients.test_images) == (1000, 6 * 200)
    (unet,) = EXPERIMENTS["unet-cut"].sizes("full", 1).values()
    assert (unet.train_images, unet.test_images, unet.image_size) == (560, 140, 256)


def test_all_are_all():
    """Oracle: the registry; what the study did not hold is asked for by name."""
    assert chosen("all") == list(STUDY)


def test_two_hospitals_become_two_clients(tmp_path):
    """Oracle: masks whose names have two prefixes, as the Kaggle download has them; one prefix gives no such runs."""
    from PIL import Image

    for number in range(12):
        site = "MCUCXR" if number % 2 else "CHNCXR"
        for folder, name in (("CXR_png", f"{site}_{number:04}_0"), ("masks", f"{site}_{number:04}_0_mask")):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.new("L", (8, 8), 255).save(tmp_path / folder / f"{name}.png")
    setting = _planned("unet-cut", data=(f"kaggle-cxr:{tmp_path}",))
    by_site = [job for job in EXPERIMENTS["unet-cut"].jobs(setting) if job.arm.endswith("by-site")]
    assert [job.options.cut for job in by_site] == ["1", "2", "3"]
    assert {(job.options.partition, job.options.clients) for job in by_site} == {("by-site", 2)}
    assert not any(job.arm.endswith("by-site") for job in EXPERIMENTS["unet-cut"].jobs(_planned("unet-cut")))
