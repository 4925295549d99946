"""``suture export``: a trained model as one TorchScript or ONNX file, run against torch before it is kept."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suture.launch.deploy.trained import TrainedModel
from suture.runtime.errors import ConfigError, SutureError

METADATA = "suture.json"
_PACKAGES = ("onnx", "onnxscript")


def export(model: TrainedModel, form: str, out: Path, *, overwrite: bool = False) -> str:
    """Writes the joined net, normalisation inside: images in [0, 1] (N, C, size, size) to probabilities.

    Any batch size goes in. The file also says what the classes are called (TorchScript: extra file
    suture.json; ONNX: metadata). It is written beside, run, compared with torch and only then renamed.

    Args:
        model: what to export.
        form: "torchscript" or "onnx".
        out: the file.
        overwrite: replace ``out`` if it is there.

    Returns:
        How the file was verified, for people.

    Raises:
        ConfigError: an unknown format, a missing package, or ``out`` exists or cannot be written.
        SutureError: the file computes something else than torch does; nothing was kept.
    """
    if form not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}, got {form!r}")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists; give another --out, or replace it with --overwrite")
    write, verifier = FORMATS[form]
    if form == "onnx":
        _require_onnx()
    draft = out.with_name(f".{out.stem}.draft{out.suffix}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(model, draft)
            verified = _verify(model, verifier, draft)
            draft.replace(out)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}; give another --out") from None
    return verified


def _verify(model: TrainedModel, verifier: Callable[[Path], tuple[str, Run]], path: Path) -> str:
    """Compares on a random batch of another size than the one that the export saw."""
    name, run = verifier(path)
    images = _random_images(model, num_images=3)
    expected, got = model.net(images), run(images)
    # Another runtime sums in another order; probabilities are at most 1, so the bound is absolute.
    worst = float((expected - got).abs().max()) if got.shape == expected.shape else float("inf")
    if not worst <= 1e-4:
        raise SutureError(
            f"{name} computes other probabilities from the exported file than torch (largest difference "
            f"{worst:.2g}, at most 1e-4 is allowed); nothing was kept"
        )
    return f"verified with {name} on {len(images)} random images: largest difference {worst:.1g}"


Run = Callable[[Tensor], Tensor]


def _random_images(model: TrainedModel, num_images: int) -> Tensor:
    shape = (num_images, model.channels, model.image_size, model.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def _about(model: TrainedModel) -> dict[str, str]:
    return {
        "task": str(model.task),
        "model": model.model,
        "classes": json.dumps(model.classes),
        "image_size": str(model.image_size),
        "channels": str(model.channels),
        "input": "images in [0, 1], padded to a square with black; normalisation is inside",
        "output": "probabilities",
        "weights_sha256": model.weights_sha256,
    }


# TorchScript -------------------------------------------------------------------------------------


def _write_torchscript(model: TrainedModel, path: Path) -> None:
    content = io.BytesIO()  # torch reports a full disk as anything but an OSError
    with _without_warnings():
        traced = torch.jit.trace(model.net, (_random_images(model, 2),))
        torch.jit.save(traced, content, _extra_files={METADATA: json.dumps(_about(model))})
    path.write_bytes(content.getbuffer())


def _torchscript_runner(path: Path) -> tuple[str, Run]:
    with _without_warnings():
        loaded: Run = torch.jit.load(path)  # type: ignore[no-untyped-call, unused-ignore]
    return "torch.jit", loaded


# ONNX --------------------------------------------------------------------------------------------


def _require_onnx() -> None:
    missing = [name for name in _PACKAGES if not is_installed(name)]
    if missing:
        raise ConfigError(f"format onnx needs {' and '.join(missing)}: pip install suture[onnx]")


def is_installed(package: str) -> bool:
    """Whether ``package`` can be imported; does not import it."""
    return importlib.util.find_spec(package) is not None


def _write_onnx(model: TrainedModel, path: Path) -> None:
    import onnx

    with _without_warnings():
        program = torch.onnx.export(
            model.net,
            (_random_images(model, 2),),
            input_names=["image"],
            output_names=["probability"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None, "torch.onnx.export returns a program where it is given no file"
    content = program.model_proto
    onnx.helper.set_model_props(content, _about(model))
    onnx.save(content, path)  # one file: our nets are far below ONNX's 2 GB


def _onnx_runner(path: Path) -> tuple[str, Run]:
    if is_installed("onnxruntime"):
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return "onnxruntime", lambda x: torch.from_numpy(session.run(None, {"image": x.numpy()})[0])
    from onnx.reference import ReferenceEvaluator

    evaluator: Any = ReferenceEvaluator(str(path))
    return "onnx's reference evaluator", lambda x: torch.from_numpy(
        evaluator.run(None, {"image": x.numpy()})[0]
    )


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """The exporters talk about themselves: deprecations of their own parts, steps that they take."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


FORMATS = {
    "torchscript": (_write_torchscript, _torchscript_runner),
    "onnx": (_write_onnx, _onnx_runner),
}
"""By ``--format``: writes a file, and runs one."""
