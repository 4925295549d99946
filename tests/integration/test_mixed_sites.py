"""Hospitals whose images lie in folders, in a table and in DICOM files train one net; their classes differ in name and order.

Oracles: weights_sha256, which there is only where all sites report the same weights; an AUROC near 1, which is near 0 at a
site whose labels are turned round; the classes that each site's model names.
"""

import json

import pytest
import torch
from sites import Sites
from small_files import write_dicom_folder, write_folders, write_table

from suture.runtime.errors import DataError

# Minutes of starting processes: `make sites` runs them.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def mixed(tmp_path):
    """Makes sites that use all of their images; their processes are gone after the test."""
    made: list[Sites] = []

    def make(**options: object) -> Sites:
        here = Sites(tmp_path, epochs=4, lr=0.001, **options)
        for counted in ("train_images", "validation_images", "test_images"):
            del here.options[counted]
        made.append(here)
        return here

    yield make
    for group in made:
        group.stop()


def _summary(sites: Sites) -> dict:
    return json.loads((sites.run / "summary.json").read_text())


def _classes(sites: Sites, name: str) -> list[str]:
    kept = torch.load(sites.folder / name / "clients" / name / "model.pt", weights_only=True)
    return list(kept["classes"])


def test_three_kinds_of_source_with_other_names_and_orders_train_one_net(mixed, tmp_path):
    """Oracle: the module's; a fourth name that is not the run's is refused, and the message's remedy lets it in."""
    here = mixed()
    folders = write_folders(
        tmp_path / "folders", {True: ["mild", "severe"], False: ["no retinopathy"]}, 1, 60
    )
    table = write_table(tmp_path / "table", 2, 50)
    dicom = write_dicom_folder(tmp_path / "dicom", 3, 40)
    here.serve("--clients", "3", "--classes", "retinopathy,no retinopathy")
    here.join("ward_b", "--data", f"kaggle-dr:{table}", "--class-weights", "balanced")
    here.join("ward_a", "--data", f"image-folder:{folders}")
    assert here.ended("ward_a", 300) == DataError.exit_code
    refused = here.log("ward_a")
    assert "this site has: mild, no retinopathy, severe; the run has: retinopathy, no retinopathy" in refused
    here.join(
        "ward_a", "--data", f"image-folder:{folders}", "--class-map", "mild=retinopathy,severe=retinopathy"
    )
    here.join(
        "ward_c", "--data", f"dicom:{dicom}", "--class-map", "healthy=no retinopathy,diseased=retinopathy"
    )
    assert [here.ended(name, 300) for name in (*here.NAMES, "server")] == [0, 0, 0, 0]
    summary = _summary(here)
    assert len(summary["weights_sha256"]) == 64
    for name in here.NAMES:
        assert _classes(here, name) == ["retinopathy", "no retinopathy"]
        assert summary["clients"][name]["test"]["auroc"] > 0.85, summary["clients"]
    assert "42 training images of 42 patients, 6 validation images of 6 patients, 12 test images" in here.log(
        "ward_a"
    )
    assert "35 training images" in here.log("ward_b") and "28 training images" in here.log("ward_c")


def test_sites_that_come_at_once_agree_on_the_order_of_the_first(mixed, tmp_path):
    """Oracle: the module's; both wait for a server that knows no classes, and have them in opposite orders."""
    here = mixed()
    folders = write_folders(tmp_path / "folders", {True: ["diseased"], False: ["healthy"]}, 1, 50)
    dicom = write_dicom_folder(tmp_path / "dicom", 3, 50)
    here.join("ward_a", "--data", f"image-folder:{folders}")
    here.join("ward_b", "--data", f"dicom:{dicom}")
    for name in ("ward_a", "ward_b"):
        here.until(here.says(name, "no server at"))
    here.serve("--clients", "2")
    assert [here.ended(name, 300) for name in ("ward_a", "ward_b", "server")] == [0, 0, 0]
    summary, classes = _summary(here), json.loads((here.run / "run.json").read_text())["classes"]
    assert sorted(classes) == ["diseased", "healthy"] and len(summary["weights_sha256"]) == 64
    for name in ("ward_a", "ward_b"):
        assert _classes(here, name) == classes
        assert summary["clients"][name]["test"]["auroc"] > 0.85, summary["clients"]
