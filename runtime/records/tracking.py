"""What a run writes down while it trains: numbers at the server, pictures at the client that owns the images.

The server's ``Tracker`` appends to RUN/metrics.jsonl and RUN/tensorboard. Nothing is ever taken out of
metrics.jsonl: an event line says which earlier lines no longer count, and ``read_metrics`` applies that.

Steps count training batches over the whole run: the first batch is step 1; what is measured after batch n
(a test, a validation) has step n. Turns count from 1 in the same way.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from suture.runtime.errors import CheckpointError, WireError
from suture.runtime.host.disk import writing

# TensorBoard takes most of a second to import; a client that writes no pictures never needs it.
if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

METRICS_FILE = "metrics.jsonl"
_WHOLE_RUN = "whole run"  # No client's folder: a name with a space is refused.
_FLUSH_SECONDS = 10
_MAX_CHANNELS = 64
_MAX_IMAGES = 8


class Tracker:
    """Records losses, scores and events of one run at the server.

    Not thread-safe: the server calls it under its own lock. A context manager: leaving it closes everything.

    In RUN/tensorboard every client has a folder of its own with the same tags ("loss/train", "loss/test",
    "test/accuracy", ...), so that TensorBoard lays the clients' curves over each other in one chart.

    Args:
        run_dir: RUN; made when missing.
        resume_step: step of the last batch that counts when a run goes on, None for a new run. TensorBoard
            then drops what an earlier process wrote after that step. The caller also writes the event
            ``event("resumed", after_turn=n, step=resume_step)``, which does the same for metrics.jsonl.
        of_client: the folder is one client's, whose curves lie in its tensorboard itself.
        curves: whether there are any; else only metrics.jsonl is written.

    Raises:
        CheckpointError: from here and from every method: a file cannot be written any more.
    """

    @writing()
    def __init__(
        self, run_dir: Path, *, resume_step: int | None = None, of_client: bool = False, curves: bool = True
    ) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self._of_client, self._curves = of_client, curves
        self._folder = run_dir / "tensorboard"
        self._purge_step = None if resume_step is None else resume_step + 1
        self._writers: dict[str, SummaryWriter] = {}
        self._turn: int | None = None
        self._turn_first_step = 0
        self._path = run_dir / METRICS_FILE
        self._lines = _open_for_append(self._path)
        if resume_step is not None and not of_client and self._folder.is_dir():
            # All at once: the curve of a client that does not come back must be shortened as well.
            for folder in sorted(self._folder.iterdir()):
                if folder.is_dir() and folder.name != _WHOLE_RUN:
                    self._writer(folder.name)

    @writing()
    def train_step(self, step: int, round: int, turn: int, client: str, loss: float, num_images: int) -> None:
        """One training batch of ``client``; ``loss`` is the task's loss, a mean over its ``num_images``."""
        if turn != self._turn:
            self._turn, self._turn_first_step = turn, step
        writer = self._writer(client)
        place = {"step": step, "round": round, "turn": turn, "client": client, "phase": "train"}
        self._write(place | {"loss": loss, "images": num_images})
        if writer is not None:
            writer.add_scalar("loss/train", loss, step)

    @writing()
    def scores(
        self, step: int, round: int, turn: int, client: str, phase: str, scores: Mapping[str, float]
    ) -> None:
        """What one evaluation of ``client`` gave.

        Args:
            step: batches trained so far.
            round: round that the evaluation closes.
            turn: number of the evaluating turn itself, so that rolling it back voids the line.
            client: name of the client.
            phase: "test" or "validation".
            scores: values by name; "loss" is drawn beside the training loss.
        """
        writer = self._writer(client)
        place = {"step": step, "round": round, "turn": turn, "client": client, "phase": phase}
        # Names in ``scores`` come over the wire: none may stand in for the turn or the client.
        self._write(place | dict(scores) | place)
        for name, value in scores.items():
            tag = f"loss/{phase}" if name == "loss" else f"{phase}/{name}"
            if writer is not None:
                writer.add_scalar(tag, value, step)

    @writing()
    def event(self, name: str, **fields: object) -> None:
        """Something that happened to the run.

        Three names change what counts: ``rolled_back`` with ``turn`` and ``client`` voids the earlier lines of
        that turn, ``resumed`` and ``went_back`` with ``after_turn`` those of all later turns; others only tell.
        """
        self._write({"event": name} | fields)
        if name == "went_back":
            self._turn = None
            for curves in self._writers.values():
                _purge_from(curves, int(str(fields["step"])) + 1)
        if name == "profiled" and (writer := self._writer(str(fields["client"]))) is not None:
            writer.add_scalar("profile/server", fields["seconds"], fields["step"])
        if (
            name == "rolled_back"
            and fields.get("turn") == self._turn
            and fields.get("client") in self._writers
        ):
            _purge_from(self._writers[str(fields["client"])], self._turn_first_step)
            self._turn = None

    @writing()
    def hparams(self, options: Mapping[str, object], final: Mapping[str, float]) -> None:
        """One row for this run in TensorBoard's HPARAMS tab; called once, at the end of the run.

        Args:
            options: resolved options; what is neither number nor text is written as text.
            final: final scores by name, shown as "whole run/<name>"; those that are not finite are left out.
        """
        from torch.utils.tensorboard.summary import hparams

        values = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in options.items()}
        metrics = {f"whole run/{k}": float(v) for k, v in final.items() if math.isfinite(v)}
        # In a folder of its own: SummaryWriter.add_hparams would open one named by the time, a row each call.
        whole_run = _open_writer(self._folder / _WHOLE_RUN)
        file_writer = whole_run._get_file_writer()  # type: ignore[no-untyped-call]
        for summary in hparams(values, metrics):  # type: ignore[no-untyped-call]
            file_writer.add_summary(summary)
        for tag, value in metrics.items():
            whole_run.add_scalar(tag, value, 0)
        whole_run.close()

    @writing()
    def flush(self) -> None:
        """Hand all curves to the operating system; call it before a checkpoint makes a turn count.

        Finds out, too, if metrics.jsonl was moved or removed: the system would go on writing to what nobody finds.
        """
        for writer in self._writers.values():
            writer.flush()
        if not os.path.samestat(self._path.stat(), os.fstat(self._lines.fileno())):
            raise OSError(errno.ESTALE, "another file is in its place", str(self._path))

    @writing()
    def close(self) -> None:
        """Flush and close everything; a second call does nothing."""
        with ExitStack() as stack:
            stack.callback(self._lines.close)
            while self._writers:
                stack.callback(self._writers.popitem()[1].close)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except CheckpointError:
            if error is None:  # else whatever ends the run says more
                raise

    def _writer(self, client: str) -> SummaryWriter | None:
        if not self._curves:
            return None
        if client not in self._writers:
            # The name comes over the wire and becomes a folder: it must not lead out of RUN/tensorboard.
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", client):
                raise WireError(
                    f"client name {client[:80]!r} is no plain file name; use letters, digits, . _ -"
                )
            folder = self._folder if self._of_client else self._folder / client
            self._writers[client] = _open_writer(folder, self._purge_step)
        return self._writers[client]

    def _write(self, record: Mapping[str, object]) -> None:
        # NaN is no JSON: a diverged loss is written as null.
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        left = (json.dumps(finite) + "\n").encode()
        with writing(self._path):
            while left:  # a disk that fills up takes a part first
                left = left[self._lines.write(left) :]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The measurements (lines with a "phase") that count, in the order in which they were written.

    Left out are lines of turns that were rolled back or lie after the turn from which the run was resumed,
    event lines (see ``read_events``), and a torn line that a crash left.

    Raises:
        FileNotFoundError: there is no such file.
    """
    counted: list[dict[str, Any]] = []
    for record in _read_lines(path):
        if record.get("event") == "rolled_back":
            counted = [line for line in counted if line["turn"] != record["turn"]]
        elif record.get("event") in ("resumed", "went_back"):
            counted = [line for line in counted if line["turn"] <= record["after_turn"]]
        elif "phase" in record:
            counted.append(record)
    return counted


def read_events(path: Path) -> list[dict[str, Any]]:
    """All event lines in the order in which they were written; an event always counts."""
    return [record for record in _read_lines(path) if "event" in record]


class ClientPictures:
    """TensorBoard pictures and curves that a client writes on its own disk; they never go to the server.

    Args:
        folder: where the event file goes, RUN/clients/<name>/tensorboard; made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self._writer = _open_writer(folder)

    def activations(self, step: int, smashed: Tensor) -> None:
        """Smashed data of the first image of a batch: a grid of at most 64 channels, each scaled for itself.

        Args:
            step: batches trained so far.
            smashed: h_NCHW, or h_ND, whose features are laid out row by row in one nearly square picture.
        """
        from torchvision.utils import make_grid  # type: ignore[import-untyped, unused-ignore]

        first = smashed[0].detach().float().cpu()
        if first.ndim != 3:
            features = first.flatten()
            side = math.ceil(math.sqrt(len(features)))
            first = torch.nn.functional.pad(features, (0, side * side - len(features))).reshape(1, side, side)
        channels = first[:_MAX_CHANNELS].unsqueeze(1)
        columns = math.ceil(math.sqrt(len(channels)))
        grid = make_grid(channels, nrow=columns, normalize=True, scale_each=True, padding=1, pad_value=1.0)
        self._writer.add_image("smashed data", grid, step)

    def detector(self, step: int, score: float, alarm: bool) -> None:
        """What the client's detector makes of the server after a batch: a curve, and 0 or 1 for its alarm."""
        self._writer.add_scalar("detector/score", score, step)
        self._writer.add_scalar("detector/alarm", float(alarm), step)

    def profile(self, step: int, seconds: Mapping[str, float]) -> None:
        """Where the time of a step went: a curve a part."""
        for part, value in seconds.items():
            self._writer.add_scalar(f"profile/{part}", value, step)

    def segmentation(self, step: int, images: Tensor, masks_true: Tensor, masks_predicted: Tensor) -> None:
        """At most 8 rows of image | true mask | predicted mask.

        Args:
            step: batches trained so far.
            images: x_NCHW, C 1 or 3, scaled to [0, 1] image by image.
            masks_true: (N, 1, H, W), 0 or 1.
            masks_predicted: (N, 1, H, W), probabilities or 0 and 1.
        """
        from torchvision.utils import make_grid  # type: ignore[import-untyped, unused-ignore]

        shown = images[:_MAX_IMAGES].detach().float().cpu()
        low, high = shown.amin((1, 2, 3), keepdim=True), shown.amax((1, 2, 3), keepdim=True)
        shown = ((shown - low) / (high - low).clamp_min(1e-6)).expand(-1, 3, -1, -1)
        masks = [
            m[:_MAX_IMAGES].detach().float().cpu().expand_as(shown) for m in (masks_true, masks_predicted)
        ]
        rows = torch.stack([shown, *masks], dim=1).flatten(0, 1)
        grid = make_grid(rows, nrow=3, padding=2, pad_value=0.5)
        self._writer.add_image("image, truth, prediction", grid, step)

    def reconstructions(self, step: int, truth: Tensor, rebuilt: Tensor, attack: str) -> None:
        """What an attack made of this client's images: truth over reconstruction, at most 8 columns.

        Args:
            step: batches trained when the smashed data were seen.
            truth: x_NCHW in [0, 1].
            rebuilt: the same shape.
            attack: names the picture.
        """
        from torchvision.utils import make_grid  # type: ignore[import-untyped, unused-ignore]

        count = min(len(truth), _MAX_IMAGES)
        rows = torch.cat([truth[:count], rebuilt[:count]]).float().clamp(0, 1)
        grid = make_grid(rows, nrow=count, padding=2, pad_value=0.5)
        self._writer.add_image(f"{attack}: truth over reconstruction", grid, step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


def _open_writer(folder: Path, purge_step: int | None = None) -> SummaryWriter:
    from torch.utils.tensorboard.writer import SummaryWriter

    return SummaryWriter(str(folder), purge_step=purge_step, max_queue=1000, flush_secs=_FLUSH_SECONDS)


def _purge_from(writer: SummaryWriter, step: int) -> None:
    """Make TensorBoard drop this writer's points from ``step`` on, as ``purge_step`` does on opening."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped, unused-ignore]

    start = Event(step=step, session_log=SessionLog(status=SessionLog.START))
    writer._get_file_writer().add_event(start)  # type: ignore[no-untyped-call]


def _open_for_append(path: Path) -> Any:
    """Open without a buffer, so that a killed process loses no line; first close a line that a crash tore."""
    lines = path.open("ab", buffering=0)
    with path.open("rb") as existing:
        if existing.seek(0, 2) and existing.seek(-1, 2) is not None and existing.read(1) != b"\n":
            lines.write(b"\n")
    return lines


def _read_lines(path: Path) -> list[dict[str, Any]]:
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # Torn by a crash; the turn it belonged to did not end, so nothing that counts is lost.
        if isinstance(record, dict):
            records.append(record)
    return records
