"""What each rank of a run does, from options to exit: the server, a client, or all of them in one process."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

import models.registry as nets
from launch import build, figures, folder, lab, stopped
from launch.capacity import check_memory
from launch.client_record import ClientRecord
from launch.config import DEFAULT_CLIENTS, RunOptions, required
from launch.cores import ranks_at_once, ready_torch
from launch.enclosure import enclose
from launch.final_table import print_final_table
from launch.keepsakes import AllOf, ClientFolder, client_folder, link_figures
from launch.logs import set_up
from launch.profile import ProfilingRecorder, draw_profile
from launch.progress import Progress
from launch.round_warnings import RoundWarnings, WarningRecorder
from launch.run_report import REPORT_FILE, ReportWriter
from launch.summary import final_metrics, summarise, write_summary
from runtime.consortium.board import ServerBoard
from runtime.coordinator import Coordinator
from runtime.data.client_data import ClientData
from runtime.disk import can_do_without, writing
from runtime.errors import ConfigError, WireError
from runtime.exchange import OVER_RPC, LocalExchange
from runtime.handoff import shared_key
from runtime.members import Members
from runtime.observers import NoRecorder, Recorder
from runtime.rpc import calls, transport
from runtime.rpc.functions import RpcServer
from runtime.rpc.transport import Transport, TransportConfig
from runtime.server import Server
from runtime.session import Keepsakes, Member, NoKeepsakes, run_local, take_part
from runtime.stopwatch import RunningStopwatch
from runtime.tracking import METRICS_FILE, Tracker, read_events, read_metrics

log = logging.getLogger(__name__)


def run_rank(options: RunOptions) -> None:
    """One rank under torchrun: rank 0 serves, the others are clients.

    Raises:
        SutureError: the run could not start, or stopped.
    """
    world = int(os.environ["WORLD_SIZE"])
    if world < 2:
        raise ConfigError(
            f"a run needs one server and at least one client, got {world} rank; "
            "use torchrun --nproc_per_node=2 or more"
        )
    if options.clients not in (None, world - 1):
        raise ConfigError(
            f"clients is {options.clients}, but torchrun started {world} ranks (one server and {world - 1} "
            f"clients, and a run that is resumed keeps its number); leave --clients out or use "
            f"--nproc_per_node={required(options.clients) + 1}"
        )
    # An attack may pre-train before it lets the clients in; in a lab they wait for it.
    timeout = max(options.lease, 900.0) if options.attack_spec() is not None else options.lease
    config = TransportConfig.from_environment(options.interface, timeout)
    options = replace(options.resolved(), clients=world - 1)
    if config.one_host and transport.LOOPBACK_STORE not in os.environ:  # `suture train` has checked
        check_memory(options)
    # Threads that are older than the sandbox stay outside it: until it is closed there is only this one.
    torch.set_num_threads(1)
    serves, here = config.rank == transport.SERVER_RANK, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    sharing = ranks_at_once(options, serves=serves, here=here)
    line = Transport(config)
    try:
        (serve if serves else join)(options, line, sharing)
    finally:
        line.leave()


def serve(options: RunOptions, line: Transport, sharing: int) -> None:
    """The server rank; ``sharing`` as in `ready_torch`."""
    progress = Progress()
    set_up("server", progress.console)
    options = _restarted(options, line)
    given = build.KEY_VARIABLE in os.environ
    build.forget_key(options)
    # The server opens no data source: how many classes there are, the clients say, each when it has its images.
    # Only then is there a folder, so that a run which could not begin leaves none.
    for index in range(required(options.clients)):
        num_classes = int(line.hear(f"classes of {build.client_name(index)}"))
    place = folder.open_folder(options, build.new_run_id())
    line.publish("run", place.run)
    line.publish("run_dir", str(place.path.resolve()))
    server = build.build_server(options, num_classes, build.device_of(options, 0))
    lab.arm(server, options, place.run, place.path, num_classes)

    if options.attack_spec() is not None:
        ready_torch(options)  # an attack may pre-train first; a lab's sandbox stays open

    def close() -> None:
        enclose(options, place.path, links=[place.path / "figures"])
        ready_torch(options, sharing)

    def play(coordinator: Coordinator) -> None:
        served = RpcServer(coordinator)
        line.join(transport.SERVER, served.table())
        served.serve(calls.knock)

    members = Members(required(options.clients), options.agreement(num_classes) | {"run": place.run})
    with ExitStack() as stack:
        if transport.LOOPBACK_STORE not in os.environ:  # else `suture train` says it
            again = stopped.torchrun_command(str(place.path))
            stack.enter_context(
                stopped.saying(lambda _: stopped.run_sentence(options, str(place.path), again, given))
            )
            stack.enter_context(stopped.sigterm_as_interrupt())
        conduct(options, server, place, num_classes, progress, play, close, members)


def _restarted(options: RunOptions, line: Transport) -> RunOptions:
    """After a restart by torchrun's agent, goes on with the run that this job had begun."""
    begun = line.of_earlier_attempt("run_dir")
    if begun is None or options.resume:
        return options
    log.info("torchrun restarted this job: resuming %s", begun)
    return replace(options, run_dir=begun, resume=True)


def conduct(
    options: RunOptions,
    server: Server,
    place: folder.RunFolder,
    num_classes: int,
    progress: Progress,
    play: Callable[[Coordinator], None],
    close: Callable[[], None] = lambda: None,
    members: Members | None = None,
    board: ServerBoard | None = None,
) -> None:
    """A whole run at the server; ``play`` returns when its last turn has been played.

    ``close`` is called when everything outside the run folder has been read.
    """
    if not place.resumed:
        folder.keep_num_classes(place, num_classes)
        # Before the first checkpoint, so that a turn rolled back to it does not pre-train again.
        server.attack.prepare()
    coordinator = build.build_coordinator(
        options,
        server,
        run=place.run,
        run_dir=place.path,
        num_classes=num_classes,
        watcher=progress,
        members=members,
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
                server.stopwatch = stopwatch = RunningStopwatch()
                recorder = ProfilingRecorder(recorder, stopwatch)
            warnings = RoundWarnings(num_classes)
            for line in read_metrics(place.path / METRICS_FILE) if place.resumed else ():
                warnings.take(line)
            return WarningRecorder(recorder, warnings, progress.warned)

        coordinator.begin(place.resumed, open_recorder)
        stack.callback(progress.finished)
        started = members is None or members.door is None
        named = [build.client_name(index) for index in range(required(options.clients))] if started else []
        progress.start(required(options.epochs), named)
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
        from launch.judging import start_judge

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
    task = str(nets.model_entry(required(options.model)).task)
    figures.metrics_by_round(records, task, charts / "metrics_by_round.png")
    if options.profile:
        draw_profile(run_dir)
    link_figures(run_dir)


def join(options: RunOptions, line: Transport, sharing: int) -> None:
    """A client rank; ``sharing`` as in `ready_torch`."""
    index = line.config.rank - 1
    name = build.client_name(index)
    set_up(name)
    images = build.build_images(options, required(options.clients))
    if index == 0:
        for note in images.source.notes:
            log.info("%s: %s", images.source.name, note)
    data = build.build_data(options, images, index)
    given = build.given_key(options, line.config.one_host)
    line.publish(f"classes of {name}", str(len(data.classes)))
    run_dir = Path(line.hear("run_dir"))
    key = given or shared_key(build.generated_key(run_dir))
    lab.prepare_client(options, data, index, run_dir)
    # Where one person's machine made the key for all clients there is no one to be protected from.
    memory = build.memory_folder() if given is not None else None
    device = build.device_of(options, int(os.environ.get("LOCAL_RANK", "0")))
    client = build.build_client(options, data, name, key, device, memory)
    # On another machine the server's path need not exist: what this client was told wins.
    elsewhere = options.run_dir is not None and not line.config.one_host
    own = client_folder(Path(options.run_dir or "") if elsewhere else run_dir, name)
    normalisation = nets.model_entry(required(options.model)).normalisation
    folder_of_own = ClientFolder(options, normalisation, data.task, own)
    keepsakes = AllOf(ClientRecord(options, own), folder_of_own)
    agreement = options.agreement(len(data.classes)) | {"run": line.hear("run")}
    folder_of_own.lock()
    kept = f"{data.num_images()} images are in memory ({data.num_bytes() / 1e6:.2g} MB)"
    enclose(options, own, write=[memory] if memory is not None else [], kept=kept)
    ready_torch(options, sharing)
    line.join(name)
    take_part(Member(client, OVER_RPC[options.exchange](), keepsakes), agreement)


def run_in_one_process(options: RunOptions) -> None:
    """``--exchange local``: the server and all clients here, through the same protocol."""
    progress = Progress()
    set_up("local", progress.console)
    options = replace(options, clients=options.clients or DEFAULT_CLIENTS).resolved()
    ready_torch(options)
    num_clients = required(options.clients)
    images = build.build_images(options, num_clients)
    for note in images.source.notes:
        log.info("%s: %s", images.source.name, note)
    data = [build.build_data(options, images, index) for index in range(num_clients)]
    device = build.device_of(options, 0)
    num_classes = len(images.source.classes)
    given = build.given_key(options)
    place = folder.open_folder(options, build.new_run_id())
    key = given or shared_key(build.generated_key(place.path))
    for index, own in enumerate(data):
        lab.prepare_client(options, own, index, place.path)
    server = build.build_server(options, num_classes, device)
    lab.arm(server, options, place.run, place.path, num_classes)

    def play(coordinator: Coordinator) -> None:
        normalisation = nets.model_entry(required(options.model)).normalisation
        task = images.source.task
        keepsakes = [AllOf(ClientRecord(options), ClientFolder(options, normalisation, task)) for _ in data]
        _play(options, coordinator, data, key, device, keepsakes)

    conduct(options, server, place, num_classes, progress, play)


def play_locally(
    options: RunOptions,
    key: bytes,
    run_dir: Path,
    *,
    resume: bool = False,
    arm: Callable[[Server, int], None] | None = None,
    images: build.Images | None = None,
    recorder: Recorder | None = None,
) -> Coordinator:
    """A whole run in this process that shows nothing and keeps nothing but its checkpoints.

    Args:
        options: resolved, with ``clients`` set.
        key: the clients' hand-off key.
        run_dir: where the checkpoints go; exists.
        resume: go on from the newest checkpoint there.
        arm: gives the server, with that many classes, an attack; None for the honest server.
        images: what is trained on; None for what ``options`` say.
        recorder: is told the run's numbers.

    Returns:
        The coordinator of the run that has ended.
    """
    images = images or build.build_images(options, required(options.clients))
    data = [build.build_data(options, images, index) for index in range(required(options.clients))]
    device, num_classes = build.device_of(options, 0), len(images.source.classes)
    server = build.build_server(options, num_classes, device)
    if arm is not None:
        for index, own in enumerate(data):
            lab.prepare_client(options, own, index, run_dir)
        arm(server, num_classes)
        server.attack.prepare()
    coordinator = build.build_coordinator(
        options, server, run=build.new_run_id(), run_dir=run_dir, num_classes=num_classes
    )
    coordinator.begin(resume, lambda step: recorder or NoRecorder())
    _play(options, coordinator, data, key, device, [NoKeepsakes() for _ in data])
    server.attack.finish()
    return coordinator


def _play(
    options: RunOptions,
    coordinator: Coordinator,
    data: Sequence[ClientData],
    key: bytes,
    device: torch.device,
    keepsakes: Sequence[Keepsakes],
) -> None:
    members = []
    for index, (images, keeps) in enumerate(zip(data, keepsakes, strict=True)):
        client = build.build_client(options, images, build.client_name(index), key, device, None)
        members.append(Member(client, LocalExchange(coordinator), keeps))
    run_local(members, options.agreement(len(data[0].classes)))
