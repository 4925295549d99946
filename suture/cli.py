"""The command line: which commands there are, and in which module each stands.

A module is imported when its command is called, for most of them take torch's seconds to import: ``--help``,
``--version`` and a shell's completion of a command's name import none.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from suture import __version__
from suture.launch.options.outcome import outcome

SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Train": {
        "train": ("train", "Train on this machine"),
        "cuts": ("cuts", "Where MODEL can be cut, and what each cut costs"),
        "predict": ("predict", "Classify or segment every image below FOLDER"),
        "evaluate": ("evaluate", "Evaluate a trained model on images"),
        "export": ("predict", "Write the whole net of a run as one TorchScript or ONNX file"),
        "report": ("experiment", "One self-contained HTML page"),
    },
    "Train between hospitals": {
        "check": ("check", "Look at DATA as 'suture join --data DATA' would"),
        "provision": ("kits", "Make a certificate authority, and a kit for the server and for each site"),
        "keygen": ("kits", "Make a hand-off key for the clients"),
        "serve": ("sites", "Be the server of a run that sites join"),
        "join": ("sites", "Join the run of the server that KIT names"),
        "pause": ("wishes", "Have the 'suture join' that runs with KIT pause"),
        "leave": ("wishes", "Have the 'suture join' that runs with KIT leave its run for good"),
        "roster": ("kits", "The sites that a site takes part with"),
        "request": ("requests", "Ask the consortium's authority for a certificate"),
        "sign": ("requests", "Sign a certificate for NAME"),
        "install": ("requests", "Put CERT.pem, which the authority has signed, into KIT"),
        "revoke": ("requests", "Take back all certificates of NAME"),
    },
    "Attack and measure": {
        "attack": ("attack", "Attack what crossed the wire in RUN"),
        "judge": ("attack", "Judge the attack on RUN again"),
        "audit": ("attack", "What would a hospital leak if it joined?"),
        "experiment": ("experiment", "Runs that together answer one question"),
        "bench": ("bench", "Measure, and write a page of docs/ or its section"),
    },
}
"""By section of ``--help`` and name: the module of ``suture/`` whose attribute it is, and how its help begins."""

COMMANDS = {name: place for section in SECTIONS.values() for name, place in section.items()}


class _Commands(click.Group):
    """Imports a command when it is called for, and not to list it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"suture.{COMMANDS[cmd_name][0]}"), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            close = difflib.get_close_matches(args[0], COMMANDS)  # at most three
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, line) for name, (_, line) in section.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        begun = [
            CompletionItem(name, help=line)
            for name, (_, line) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return begun + click.Command.shell_complete(self, ctx, incomplete)


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, message="suture %(version)s")
def suture() -> None:
    """Split learning for medical imaging: several hospitals train one network, no image leaves its house."""


def main() -> NoReturn:
    """The ``suture`` command."""
    sys.exit(outcome(lambda: suture.main(standalone_mode=False)))
