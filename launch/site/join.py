"""A site: what it needs for a run, in the order in which it is needed, and its way through it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from rich.console import Console

from suture.launch import build, keys
from suture.launch.host.address import check_line_timeout, parse_address
from suture.launch.host.cores import ready_torch
from suture.launch.host.logs import set_up
from suture.launch.kits.kit import Kit
from suture.launch.kits.standing import SiteStanding
from suture.launch.options.options import AskedOptions, RunOptions
from suture.launch.output.client_folder import AllOf, client_folder
from suture.launch.output.client_record import ClientRecord, images_by_set
from suture.launch.output.report.numbers import RunState
from suture.launch.output.report.writer import SITE, ReportWriter
from suture.launch.output.site_progress import SiteProgress, print_end
from suture.launch.output.stopped import StoppedInRound
from suture.launch.policy.policy import Policy, evaluated_set, training_set
from suture.launch.roles.client import enter_folder
from suture.launch.site import own_images
from suture.launch.site.own_images import SiteDataConfig
from suture.launch.site.search import Search
from suture.launch.site.secret import run_secret
from suture.launch.site.terms import agreed_classes, ask_terms, merged
from suture.launch.site.wishes import SiteWishes, Unasked
from suture.models.norms import LOCAL
from suture.runtime.client.client import Client
from suture.runtime.client.wishes import Parting, Wish
from suture.runtime.consortium.credentials import Credentials, read_authorities
from suture.runtime.consortium.identity import Identity, Trust
from suture.runtime.consortium.roster import Roster
from suture.runtime.consortium.site import SiteConsortium
from suture.runtime.data.class_names import matched
from suture.runtime.data.client_data import ClientData
from suture.runtime.errors import ConfigError, EvictedError, PeerLostError, PolicyError, UnreachableError
from suture.runtime.exchange.grpc import GrpcExchange
from suture.runtime.grpc.chunks import SMALL, Limits
from suture.runtime.grpc.client import GrpcClient, GrpcClientConfig
from suture.runtime.grpc.loop import LoopThread
from suture.runtime.grpc.service import MUTUAL, PROXY, check_mode
from suture.runtime.host.sandbox import Ports
from suture.runtime.participant.leaving import part
from suture.runtime.participant.participant import ClientObserver, Participant
from suture.runtime.records.outbox import LEFT_FILE, Outbox
from suture.runtime.session import join, take_turns
from suture.runtime.wire.messages import Terms

log = logging.getLogger(__name__)

_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
"""The variables in which gRPC looks for an HTTP proxy, in this order."""


@dataclass(frozen=True, kw_only=True)
class JoinConfig:
    """One site.

    Attributes:
        kit: the site's.
        server: HOST:PORT where the server listens.
        patience: seconds to look for a server that does not answer, at the start and after it went away.
        line_timeout: seconds within which a cut cable is noticed.
        tls: as the server runs, "mutual" or "proxy".
        proxy_ca: with "proxy", who signs the certificate that the proxy shows; None for the certificates' authority.
        revoked: the authority's list of revoked certificates; None for the kit's.
        data: what the site says of its images.
    """

    kit: Kit
    server: str
    patience: float = 600.0
    line_timeout: float = 15.0
    tls: str = MUTUAL
    proxy_ca: Path | None = None
    revoked: Path | None = None
    data: SiteDataConfig = field(default_factory=SiteDataConfig)

    def __post_init__(self) -> None:
        check_mode(self.tls)
        if self.proxy_ca is not None and self.tls != PROXY:
            raise ConfigError(
                "proxy_ca is for a proxy that opens TLS: give --tls proxy, too, or leave it out"
            )
        if not self.patience > 0:
            raise ConfigError(f"patience must be above 0 seconds, got {self.patience}")
        parse_address(self.server)
        check_line_timeout(self.line_timeout)


def join_site(asked: Mapping[str, Any], config: JoinConfig) -> None:
    """A site, until the run is over; looks for the server again whenever it has lost it.

    Args:
        asked: options by name, as this site's people gave them, and ``run_dir``; the server's run says the rest.
        config: the site.

    Raises:
        UnreachableError: there was no server for as long as ``patience`` says.
        PolicyError: the site's policy forbids the run.
        SutureError: the site was refused, or could not go on.
    """
    credentials, standing = config.kit.credentials(), SiteStanding(config.kit, config.revoked)
    name = credentials.name
    console = Console(stderr=True)
    set_up(name, console)
    torch.set_num_threads(1)  # threads that are older than the sandbox stay outside it
    policy = _policy(config)
    line, search = (
        _line(config, credentials, AskedOptions(**asked).lease),
        Search(config.server, config.patience),
    )
    terms = ask_terms(standing.dial(line), search)
    options = _options(asked, config, policy, terms)
    state = config.kit.make_state()
    wishes = SiteWishes(state, name, terms.run)
    key = keys.given_key(options)
    images = _images(options, asked, config, policy)
    classes = agreed_classes(terms, images.source.classes, name, standing.dial(line), search)
    images = replace(images, source=matched(images.source, classes))
    own_images.log_classes(images.source)
    data = build.build_data(options, images, 0)
    own_images.offer_weights(options, data)
    secret, own = run_secret(state, name, terms.run), client_folder(Path(asked["run_dir"]), name)
    trust = Trust(credentials.authority, Roster(config.kit.roster), standing.revocations)
    consortium = SiteConsortium(Identity.of(credentials), trust, key)
    client = build.build_client(
        options,
        data,
        name,
        key or secret,
        build.device_of(options, 0),
        state,
        own=build.SiteOwn(secret, consortium, policy.repeats),
        folder=own,
    )
    # The secret is for this run: a server that says another id when the site joins is refused.
    client.join(terms.run)
    agreement = options.site_agreement(data.classes)  # reads --weights, which the sandbox will not let us do
    limits = build.wire_limits(options, len(data.classes))
    # The kit stays readable, since the roster may change while the run goes on, and its state writable.
    ports = Ports(connect=(line.port, *proxy_ports()))
    kept = enter_folder(options, data, own, read=standing.folders, write=[state], ports=ports)
    ready_torch(options)
    outbox = Outbox(own / LEFT_FILE, options.cut)
    line = replace(line, limits=limits, outbox=outbox)
    shown = _Shown(options, client, line, own, console)
    with closing(outbox), closing(wishes), standing:
        wishes.watch()
        with shown.page(), closing(shown.progress):
            observer = AllOf(shown.progress, shown.record, kept)
            take_part(client, observer, line, agreement, config, standing, wishes)
    if shown.record.is_finished:
        print_end(shown.task, shown.record.scores, shown.record.best_round, own)


def _policy(config: JoinConfig) -> Policy:
    policy = Policy.read(config.kit.policy)
    if config.tls == PROXY and not policy.tls_proxy:
        raise PolicyError(
            f"policy tls_proxy: a proxy that opens TLS may not be used, got --tls proxy; see {config.kit.policy}"
        )
    return policy


def _line(config: JoinConfig, credentials: Credentials, lease: float) -> GrpcClientConfig:
    """The line to the server, as long as the run is not known: nothing large may cross it."""
    host, port = parse_address(config.server)
    return GrpcClientConfig(
        host=host,
        port=port,
        credentials=credentials,
        limits=Limits(batch=SMALL, handoff=SMALL, release=SMALL),
        lease=lease,
        line_timeout=config.line_timeout,
        tls=config.tls,
        proxy_ca=None if config.proxy_ca is None else read_authorities(config.proxy_ca),
    )


def _options(asked: Mapping[str, Any], config: JoinConfig, policy: Policy, terms: Terms) -> RunOptions:
    """The run's options where its policy may allow them, with what this site asked for and its policy demands."""
    policy.screen(terms.agreement)
    values = merged(asked, terms)
    own_images.check_task(values)
    options = policy.filled(AskedOptions(**values | {"clients": 1}).resolved())
    if config.data.evaluate_only and options.norms == LOCAL:
        raise ConfigError(
            "evaluate-only does not go with the run's norms local: a site gets its batch norms by training, and this "
            "one trains nothing; let it train, or start the run with --norms shared"
        )
    # A site that only evaluates asks for scores, and nothing is chosen by them.
    return replace(options, test_every_round=True) if config.data.evaluate_only else options


def _images(
    options: RunOptions, asked: Mapping[str, Any], config: JoinConfig, policy: Policy
) -> build.Images:
    """The site's images, where its policy allows the run with so many; reads no picture."""
    images = own_images.take(options, asked, config.kit.name, config.data)
    counted = "test" if config.data.evaluate_only else "training"
    patients, number = evaluated_set(images) if config.data.evaluate_only else training_set(images)
    by_proxy = config.tls == PROXY
    policy.check(options, patients=patients, images=number, tls_proxy=by_proxy, counted=counted)
    return images


class _Shown:
    """What a site sees of the run, on its terminal and in its own folder."""

    def __init__(
        self, options: RunOptions, client: Client, line: GrpcClientConfig, own: Path, console: Console
    ) -> None:
        def traffic() -> tuple[int, int]:
            return line.traffic.up, line.traffic.down

        self.task = str(client.model.data.task)
        self.progress = SiteProgress(self.task, options.epochs, traffic, own, console)
        self.record = ClientRecord(options, own, curves=True, traffic=traffic, warn=self.progress.warned)
        self._own, self._facts = own, _facts(options, client.model.data, client.name)

    def page(self) -> ReportWriter:
        """The page of the run, as it begins."""
        page = ReportWriter(self._own, view=SITE, facts=self._facts, seconds_left=self.progress.seconds_left)
        page.update(RunState(started=time.time()))
        return page


def _facts(options: RunOptions, data: ClientData, name: str) -> dict[str, Any]:
    """What the page of the run says beside the site's numbers."""
    told = {option: value for option, value in vars(options).items() if value is not None}
    return told | {"name": name, "classes": list(data.classes), "clients_data": {name: images_by_set(data)}}


def proxy_ports() -> tuple[int, ...]:
    """The port of the HTTP proxy that gRPC will use, if the environment names one."""
    named = next((os.environ[name] for name in _PROXIES if os.environ.get(name)), "")
    try:
        found = urlsplit(named if "//" in named else f"//{named}").port
    except ValueError:
        raise ConfigError(
            f"the proxy {named!r:.80} has no proper port; set https_proxy=http://HOST:PORT"
        ) from None
    return () if not named else (found or 80,)


def take_part(
    client: Client,
    observer: ClientObserver,
    line: GrpcClientConfig,
    agreement: dict[str, str],
    config: JoinConfig,
    standing: SiteStanding | None = None,
    wishes: SiteWishes | Unasked | None = None,
) -> None:
    """A client's whole run, over as many connections as it takes.

    Raises:
        UnreachableError: there was no server for as long as ``patience`` says.
        SutureError: it was refused, or could not go on.
    """
    search, wishes = Search(config.server, config.patience), wishes or Unasked()
    with closing(LoopThread()) as thread:
        while True:
            if wishes.sit_out():
                search = Search(config.server, config.patience)
            connection = GrpcClient(line if standing is None else standing.dial(line), thread)
            if standing is not None:
                standing.carries(connection, client.consortium)
            member = Participant(client, GrpcExchange(connection), observer, wishes)
            try:
                if _play(member, agreement, config.patience, search, wishes):
                    return
            except PeerLostError as lost:
                client.undo()
                if wishes.wants_to_leave_now:
                    raise UnreachableError(
                        f"{client.name} is to leave at once, and the server at {config.server} was not told: {lost}; "
                        "start it again when the server is back, so that it can say so"
                    ) from None
                if not search.goes_on(lost):
                    return
            except KeyboardInterrupt:
                raise StoppedInRound(client.round) from None
            finally:
                member.exchange.close()


def _play(
    member: Participant[GrpcExchange],
    agreement: dict[str, str],
    patience: float,
    search: Search,
    wishes: SiteWishes | Unasked,
) -> bool:
    """A client's part of the run over one connection; whether it has no more to do in it.

    Raises:
        PeerLostError: the server is gone, or has given the client up.
        SutureError: as `take_part`.
    """
    try:
        join(member, agreement, patience)
        search.found()
        take_turns(member)
        search.is_for_the_goodbye = True
        member.exchange.leave()
        return True
    except Parting as parting:
        part(member, parting)
        if parting.wish is Wish.PAUSE:
            return False
    except EvictedError:
        if not wishes.wants_to_leave:  # it may have been told before, and not have heard the answer
            raise
    wishes.left()
    return True
