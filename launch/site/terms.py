"""What a site is told before it joins: the run's options and its classes. It needs nothing else than its kit and its
images. Where no site has said yet which classes the run has, the first one that asks for them says its own.

Asked in a process of its own, which ends with the answer: gRPC starts threads that outlive a connection, and a thread
that is older than the sandbox stays outside it.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import fields
from multiprocessing.connection import Connection
from typing import Any

from suture.launch.options.classes import CLASSES, read_classes, written_classes
from suture.launch.options.options import SITES_OWN, AskedOptions
from suture.launch.options.toml import flag, option_type
from suture.launch.site.search import Search
from suture.runtime.data.class_names import problem_of
from suture.runtime.errors import ERRORS, ConfigError, PeerLostError, StoppedError, SutureError, WireError
from suture.runtime.grpc.client import GrpcClient, GrpcClientConfig
from suture.runtime.grpc.service import TERMS
from suture.runtime.wire.codec import fits
from suture.runtime.wire.messages import Hello, Terms, unwrap

_BESIDE = (CLASSES, "protocol", "torch", "suture", "weights")
"""What is compared at joining and is no option."""


def ask_terms(line: GrpcClientConfig, search: Search, hello: Hello | None = None) -> Terms:
    """The terms of the run that the server plays; looks for the server as long as the site's patience lasts.

    Args:
        line: how to reach it.
        search: the site's search for it.
        hello: what the site would say of itself; with it the server's answer names the run's classes.

    Raises:
        UnreachableError: there was no server.
        SutureError: it does not let this site in, or answered with something else.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    asking = context.Process(target=_ask, args=(there, line, search, hello), daemon=True)
    asking.start()
    there.close()
    try:
        said = json.loads(here.recv_bytes())
    except EOFError:
        raise StoppedError(
            f"asking {line.host}:{line.port} for the run's options failed; see above"
        ) from None
    finally:
        here.close()
        asking.kill()
        asking.join()
    if "error" in said:
        raise ERRORS.get(said["error"], SutureError)(said["message"])
    return Terms(said["run"], said["agreement"])


def agreed_classes(
    terms: Terms, own: Sequence[str], name: str, line: GrpcClientConfig, search: Search
) -> tuple[str, ...]:
    """The run's classes, in its order: those of the terms, or else of the first site that says its own, maybe this one.

    Args:
        terms: as the server has told them.
        own: this site's classes.
        name: of this site.
        line: how to reach the server.
        search: the site's search for it.

    Raises:
        ConfigError: the run's classes are not known yet, and this site's alone would not do.
        WireError: the server names no classes, or another run.
        SutureError: as `ask_terms`.
    """
    if CLASSES not in terms.agreement:
        if problem := problem_of(own, least=2):
            raise ConfigError(
                f"nobody has said yet which classes the run has, and those of this site will not do: {problem}; ask "
                "the server's operator to name them (suture serve --classes a,b), or join when another site has"
            )
        hello = Hello(name, {CLASSES: written_classes(own)}, num_images=0, num_batches=0)
        settled = ask_terms(line, search, hello)
        if settled.run != terms.run:
            raise ConfigError(
                f"{name}: the server has begun another run in the meantime; start this site again to join it"
            )
        terms = settled
    return read_classes(terms.agreement, "server")


def _ask(answer: Connection, line: GrpcClientConfig, search: Search, hello: Hello | None) -> None:
    try:
        terms = _found(line, search, hello)
        said: dict[str, Any] = {"run": terms.run, "agreement": terms.agreement}
    except SutureError as error:
        said = {"error": type(error).__name__, "message": str(error)}
    except KeyboardInterrupt:
        return
    answer.send_bytes(json.dumps(said).encode())


def _found(line: GrpcClientConfig, search: Search, hello: Hello | None) -> Terms:
    while True:
        with closing(GrpcClient(line)) as client:
            try:
                terms = unwrap(client.begin(TERMS, [] if hello is None else [hello])())
            except PeerLostError as lost:
                search.goes_on(lost)
                continue
            if not fits(terms, Terms):
                raise WireError(f"server: terms: answered with a {type(terms).__name__}; refused")
            return terms  # type: ignore[no-any-return]  # `fits` has looked


def merged(asked: Mapping[str, Any], terms: Terms) -> dict[str, Any]:
    """What this site asked for, and the run's options that it left open.

    Args:
        asked: options by name, as this site's people gave them.
        terms: as `Policy.screen` has passed them.

    Raises:
        ConfigError: both say something, and not the same; or the run starts from weights that this site does not have.
    """
    said = {name: text for name, text in terms.agreement.items() if name not in (*_BESIDE, *SITES_OWN)}
    options = {option.name: option for option in fields(AskedOptions)}
    values = dict(asked)
    for name, text in said.items():
        if name not in options:
            raise ConfigError(
                f"the server set {name!r:.40}, which this suture does not know; install the same suture"
            )
        value = _read(text, option_type(options[name]), name)
        if name in asked and asked[name] != value:
            raise ConfigError(
                f"this site asks for {name} = {asked[name]}, the server's run has {value}; leave "
                f"--{flag(options[name])} out, or ask the server's operator"
            )
        if value is not None:
            values[name] = value
    if "weights" in terms.agreement and "weights" not in asked:
        raise ConfigError(
            f"the run starts from weights whose SHA-256 is {terms.agreement['weights']:.64}; ask the server's operator "
            "for that file and give --weights FILE"
        )
    return values


def _read(text: str, kind: type, name: str) -> Any:
    if text == "None":
        return None
    if kind is bool and text in ("True", "False"):
        return text == "True"
    try:
        return kind(text) if kind is not bool else int("no bool")
    except ValueError:
        raise ConfigError(
            f"the server set {name} to {text!r:.40}, which is no {kind.__name__}; refused"
        ) from None
