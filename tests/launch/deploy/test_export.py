"""``suture export``: one file that computes what torch does. Oracle: the joined net, normalisation by hand."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from suture.cli import suture
from suture.launch.deploy import export as export_module
from suture.launch.deploy.export import export
from suture.launch.deploy.trained import load_trained
from suture.launch.options.options import AskedOptions
from suture.launch.roles.one_process import run_in_one_process
from suture.runtime.data.normalise import normalise
from suture.runtime.errors import ConfigError, SutureError

NETS = {
    "classification": {"data": "fundus-phantom", "model": "resnet18"},
    "segmentation": {"data": "chest-phantom", "width": 4},
}


@pytest.fixture(scope="module", params=NETS)
def run(request, tmp_path_factory):
    """The run folder of a tiny classifier or segmenter."""
    path = tmp_path_factory.mktemp(request.param) / "run"
    run_in_one_process(
        AskedOptions(
            **NETS[request.param], clients=1, epochs=1, image_size=32, exchange="local", run_dir=str(path),
            train_images=4, validation_images=2, test_images=2, batch_size=2,
        )
    )  # fmt: skip
    return path


@pytest.fixture
def model(run):
    return load_trained(run, "best")


@torch.no_grad()
def expected(model, x):
    logits = model.net.joined(normalise(x, model.normalisation))
    return logits.softmax(1) if model.task == "classification" else logits.sigmoid()


@pytest.mark.parametrize("num_images", [1, 5])
def test_torchscript_computes_what_torch_does(model, tmp_path, num_images):
    out = tmp_path / "new" / "net.pt"
    assert "verified with torch.jit on 3 random images" in export(model, "torchscript", out)
    x = torch.rand(num_images, model.channels, 32, 32)
    about = {"suture.json": ""}
    loaded = torch.jit.load(out, _extra_files=about)
    assert torch.allclose(loaded(x), expected(model, x), atol=1e-6)
    about = json.loads(about["suture.json"])
    assert json.loads(about["classes"]) == list(model.classes)
    assert about["weights_sha256"] == model.weights_sha256
    assert [p.name for p in out.parent.iterdir()] == ["net.pt"]


@pytest.mark.parametrize("num_images", [1, 5])
def test_onnx_computes_what_torch_does(model, tmp_path, num_images):
    pytest.importorskip("onnxscript")
    onnx_reference = pytest.importorskip("onnx.reference")
    out = tmp_path / "net.onnx"
    assert "verified with onnx" in export(model, "onnx", out)
    x = torch.rand(num_images, model.channels, 32, 32)
    (got,) = onnx_reference.ReferenceEvaluator(str(out)).run(None, {"image": x.numpy()})
    assert np.allclose(got, expected(model, x), atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_onnx_without_its_packages_names_the_extra(model, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "is_installed", lambda name: False)
    with pytest.raises(
        ConfigError, match=r"format onnx needs onnx and onnxscript: pip install suture\[onnx\]"
    ):
        export(model, "onnx", tmp_path / "net.onnx")


def test_a_file_that_computes_something_else_is_not_kept(model, tmp_path, monkeypatch):
    write, _ = export_module.FORMATS["torchscript"]
    wrong = lambda path: ("a liar", lambda x: expected(model, x) + 0.01)  # noqa: E731
    monkeypatch.setitem(export_module.FORMATS, "torchscript", (write, wrong))
    with pytest.raises(SutureError, match=r"a liar computes other probabilities .*difference 0.01"):
        export(model, "torchscript", tmp_path / "net.pt")
    assert not list(tmp_path.iterdir())


def test_bad_options_are_refused(run, model, tmp_path):
    with pytest.raises(ConfigError, match="format must be one of torchscript, onnx, got 'tflite'"):
        export(model, "tflite", tmp_path / "net")
    (tmp_path / "net.pt").write_text("mine")
    with pytest.raises(ConfigError, match=r"net.pt exists; give another --out, or .* with --overwrite"):
        export(model, "torchscript", tmp_path / "net.pt")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write .*; give another --out"):
        export(model, "torchscript", tmp_path / "file" / "net.pt")
    arguments = ["export", str(run), "--format", "torchscript", "--out", str(tmp_path / "net.pt")]
    result = CliRunner().invoke(suture, [*arguments, "--overwrite"], standalone_mode=False)
    assert result.exception is None and "wrote" in result.output and "verified" in result.output
