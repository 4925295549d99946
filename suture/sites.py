"""``suture serve`` and ``suture join``: each site starts its own, whenever."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import click

from suture.launch.click_options import EPILOG, asked_options
from suture.launch.kits.kit import Kit
from suture.launch.options.options import AskedOptions
from suture.launch.options.outcome import exit_as_rank, outcome
from suture.launch.output.run_folder import holds_run, named_by_time, saved_serving, with_saved
from suture.launch.output.stopped import run_sentence, saying, site_sentence, typed_command
from suture.launch.roles.site_server import ServeConfig, check_classes, check_options, serve_site, with_task
from suture.launch.site.join import JoinConfig, join_site
from suture.launch.site.own_images import SiteDataConfig
from suture.runtime.consortium.credentials import Role
from suture.runtime.data.class_names import parse_map, parse_names
from suture.runtime.errors import ConfigError
from suture.runtime.grpc.service import MODES, MUTUAL
from suture.runtime.server.membership import OpenMembership

_KIT = click.argument("kit", type=click.Path(path_type=Path))
_LINE_TIMEOUT = click.option(
    "--line-timeout",
    type=float,
    default=None,
    help="seconds within which a cut cable is noticed, at this end [15]",
)
_FOR_TRAINING = ("train_images", "held_out_images", "partition", "class_weights")
"""Options of `suture join` that say nothing to a site that only evaluates."""
_TLS = click.option(
    "--tls",
    type=click.Choice(MODES),
    default=None,
    help="who each is says TLS, or, where a proxy opens TLS, a handshake inside it; the same at all [mutual]",
)

_REVOKED = click.option(
    "--revoked",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="the authority's list of revoked certificates, in a folder of its own; read again when it has changed "
    "[KIT/revoked.pem, if there is one]",
)


@click.command(epilog=EPILOG)
@_KIT
@click.option("--listen", metavar="HOST:PORT", help="an address of this machine [the kit's]")
@click.option(
    "--min-clients", type=int, default=None, help="begin with so many sites when --grace is over [--clients]"
)
@click.option("--grace", type=float, default=None, help="seconds to wait for sites that are not there [60]")
@click.option(
    "--classes",
    "named",
    metavar="NAME,NAME",
    help="the run's classes, in their order; sites match theirs by name [those of the first site to join]",
)
@_LINE_TIMEOUT
@_TLS
@_REVOKED
@asked_options
def serve(asked: dict[str, Any], kit: Path, named: str | None, **serving: Any) -> NoReturn:
    """Be the server of a run that sites join: begins when --clients of them are in.

    KIT is the server's folder, which 'suture provision' made. Listens on one port, gRPC over mutual TLS 1.3. Sites may
    come late and come back: they train from the next round on. Started again with the same --run-dir, it goes on from
    the last turn that counted, and takes all that is not given from that run. --clients and --min-clients count all
    sites, those that only evaluate, too; the run waits where nobody who trains is there.
    """
    given = {name: value for name, value in serving.items() if value is not None}
    folder = asked.get("run_dir") or named_by_time()
    if asked.get("resume") or holds_run(Path(folder)):
        asked = with_saved(asked | {"resume": True}, opens_data=False)
        given = saved_serving(Path(folder)) | given
    given_options = AskedOptions(**with_task(asked) | {"run_dir": folder})
    check_options(given_options, "serve")
    options = given_options.resolved()
    classes = () if named is None else parse_names(named)
    check_classes(options, classes)
    min_clients = given.get("min_clients")
    OpenMembership(
        least=1 if min_clients is None else min_clients, grace=given.get("grace", ServeConfig.grace)
    )
    if min_clients is not None and min_clients > options.clients:
        raise ConfigError(f"min_clients must lie in 1..{options.clients} (--clients), got {min_clients}")
    own = Kit.read(kit, Role.SERVER)
    config = replace(ServeConfig.given(own, given), classes=classes)
    own.credentials()
    again = shlex.join(["suture", "serve", str(kit), "--run-dir", folder])

    def work() -> None:
        with saying(lambda stopped: run_sentence(options, folder, again, key_from_environment=False)):
            serve_site(options, config)

    _be_member(work)


@click.command(epilog=EPILOG)
@_KIT
@click.option("--server", metavar="HOST:PORT", help="dial this instead of the kit's address")
@click.option("--patience", type=float, default=600.0, help="seconds to look for a server [600]")
@click.option(
    "--proxy-ca",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="with --tls proxy: who signs the certificate that the proxy shows, PEM [the kit's authority]",
)
@click.option(
    "--evaluate-only",
    is_flag=True,
    help="train nothing: all of --data are test images, or as many as --test-images and --validation-images say",
)
@click.option(
    "--class-map",
    metavar="THEIRS=OURS,...",
    help="which class of the run each of this site's is, where they have other names; several may be one",
)
@click.option("--validation", type=float, help="share of all images to validate on [0.1]")
@click.option(
    "--test", type=float, help="share of all images to test on [the official test images, or else 0.2]"
)
@_LINE_TIMEOUT
@_TLS
@_REVOKED
@asked_options
def join(
    asked: dict[str, Any],
    kit: Path,
    class_map: str | None,
    validation: float | None,
    test: float | None,
    server: str | None,
    patience: float,
    evaluate_only: bool,
    line_timeout: float | None,
    tls: str | None,
    proxy_ca: Path | None,
    revoked: Path | None,
) -> NoReturn:
    """Join the run of the server that KIT names, with this site's own --data.

    KIT is this site's folder, which 'suture provision' made. Dials out to that one port and listens on none; an HTTP
    proxy is taken from https_proxy. The server says the run's options, which the kit's policy.toml must allow; what is
    given here, too, must be the same. Classes are matched by name, whatever their order (--class-map for other names).

    All images of --data are used, unbalanced, and divided patient by patient: --validation and --test are shares. With
    --train-images, --validation-images or --test-images it is so many, with balanced classes.

    With --evaluate-only it scores the model of each round on its images and gets the model, and nothing is learnt from
    them; the server counts it among its --clients. 'suture pause KIT' and 'suture leave KIT' reach it while it runs.
    """
    options = AskedOptions(**asked)
    check_options(options, "join")
    for option in _FOR_TRAINING if evaluate_only else ():
        if option in asked:
            raise ConfigError(
                f"{option} is for a site that trains: leave --{option.replace('_', '-')} out, or --evaluate-only"
            )
    data = SiteDataConfig(
        class_map={} if class_map is None else parse_map(class_map),
        validation=validation,
        test=test,
        evaluate_only=evaluate_only,
    )
    data.check(asked)
    own = Kit.read(kit, Role.CLIENT)
    config = JoinConfig(
        kit=own,
        server=server or own.server,
        patience=patience,
        line_timeout=JoinConfig.line_timeout if line_timeout is None else line_timeout,
        tls=tls or MUTUAL,
        proxy_ca=proxy_ca,
        revoked=revoked,
        data=data,
    )
    own.check_listed()
    folder = options.run_dir or named_by_time(f"_{own.name}")
    again = typed_command(folder, is_named=options.run_dir is not None)

    def work() -> None:
        with saying(lambda stopped: site_sentence(stopped, again)):
            join_site(asked | {"run_dir": folder}, config)

    _be_member(work)


def _be_member(work: Callable[[], None]) -> NoReturn:
    # Told to stop by systemd or compose, it ends as by Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    exit_as_rank(outcome(work))
