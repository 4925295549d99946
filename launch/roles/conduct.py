"""A whole run at the server, from its first turn to its last figure."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from suture.launch import build
from suture.launch.lab import lab
from suture.launch.options.options import RunOptions
from suture.launch.output import figures, run_folder
from suture.launch.output.client_folder import link_figures
from suture.launch.output.final_table import print_final_table
from suture.launch.output.progress import Progress
from suture.launch.output.report import REPORT_FILE, ReportWriter
from suture.launch.output.round_warnings import RoundWarnings, WarningRecorder
from suture.launch.output.step_times import ProfilingRecorder, draw_profile
from suture.launch.output.summary import final_metrics, summarise, write_summary
from suture.runtime.consortium.board import ServerBoard
from suture.runtime.errors import WireError
from suture.runtime.host.disk import can_do_without, writing
from suture.runtime.records.observers import Recorder
from suture.runtime.records.step_timer import RunningStepTimer
from suture.runtime.records.tracking import METRICS_FILE, Tracker, read_events, read_metrics
from suture.runtime.server.coordinator import Coordinator
from suture.runtime.server.membership import Membership


def conduct(
    options: RunOptions,
    place: run_folder.RunFolder,
    num_classes: int,
    progress: Progress,
    play: Callable[[Coordinator], None],
    close: Callable[[], None] = lambda: None,
    membership: Membership | None = None,
    board: ServerBoard | None = None,
) -> None:
    """A whole run at the server; ``play`` returns when its last turn has been played.

    ``close`` is called when everything outside the run folder has been read.
    """
    server = build.build_server(options, num_classes, build.device_of(options, 0))
    lab.arm(server, options, place.run, place.path, num_classes)
    if not place.resumed:
        run_folder.keep_num_classes(place, num_classes)
        # Before the first checkpoint, so that a turn rolled back to it does not pre-train again.
        server.attack.prepare()
    coordinator = build.build_coordinator(
        options,
        server,
        run=place.run,
        run_dir=place.path,
        num_classes=num_classes,
        watcher=progress,
        membership=membership,
        board=board,
    )
    close()
    with ExitStack() as stack:
        stack.callback(place.lock.close)
        # Left after the tracker: its last page is of the whole of metrics.jsonl.
        stack.enter_context(ReportWriter(place.path, seconds_left=progress.seconds_left))
        tracker: Tracker

        def open_recorder(step: int | None) -> Recorder:
            nonlocal tracker
            tracker = stack.enter_context(Tracker(place.path, resume_step=step))
            recorder: Recorder = tracker
            if options.profile:
                server.step_timer = step_timer = RunningStepTimer()
                recorder = ProfilingRecorder(recorder, step_timer)
            warnings = RoundWarnings(num_classes)
            for line in read_metrics(place.path / METRICS_FILE) if place.resumed else ():
                warnings.take(line)
            return WarningRecorder(recorder, warnings, progress.warned)

        coordinator.begin(place.resumed, open_recorder)
        stack.callback(progress.finished)
        started = membership is None or membership.door is None
        named = [build.client_name(index) for index in range(options.clients)] if started else []
        progress.start(options.epochs, named)
        play(coordinator)
        progress.finished()
        server.attack.finish()
        conclude(options, coordinator, place.path, tracker)


def conclude(options: RunOptions, coordinator: Coordinator, run_dir: Path, tracker: Tracker) -> None:
    """After the last round: summary, hparams, figures, and the table of clients."""
    with writing():
        summary = summarise(options, coordinator, read_events(run_dir / METRICS_FILE))
    write_summary(run_dir, summary)
    tracker.hparams(
        {name: value for name, value in vars(options).items() if value is not None}, final_metrics(summary)
    )
    tracker.close()
    with can_do_without(f"{run_dir / 'figures'}"):
        draw_figures(options, run_dir)
    print_final_table(summary)
    print(f"weights_sha256 {summary['weights_sha256']}")
    if options.attack_spec() is not None and options.judge == "on":
        from suture.launch.lab.judging import start_judge

        start_judge(options, run_dir)
    print(f"Everything is in {run_dir}: open {run_dir / REPORT_FILE}, or tensorboard --logdir {run_dir}")
    if "disagreement" in summary:
        raise WireError(f"{summary['disagreement']}; everything else is in {run_dir}")


def draw_figures(options: RunOptions, run_dir: Path) -> None:
    """Draws RUN/figures: the server's own, and links to those of clients on this disk."""
    records = read_metrics(run_dir / METRICS_FILE)
    charts = run_dir / "figures"
    charts.mkdir(exist_ok=True)
    figures.training_loss(records, charts / "training_loss.png")
    figures.metrics_by_round(records, options.task, charts / "metrics_by_round.png")
    if options.profile:
        draw_profile(run_dir)
    link_figures(run_dir)
