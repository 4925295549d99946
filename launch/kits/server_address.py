"""Where a consortium's server is, as its authority's folder keeps it for those who come later: ``authority.toml``."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from suture.runtime.errors import ConfigError
from suture.runtime.host.private_files import write_private

PLACES = "authority.toml"
_HEADING = (
    "# Where the sites find the server, and the hosts that its certificate names. 'suture sign' reads this.\n"
)


@dataclass(frozen=True)
class Places:
    """Where the server is.

    Attributes:
        hosts: addresses and names that its certificate must name.
        server: HOST:PORT at which sites reach it; may be empty.
    """

    hosts: tuple[str, ...] = ()
    server: str = ""

    @classmethod
    def read(cls, folder: Path) -> Places:
        """What an authority's folder says; an authority that was made without them has none.

        Raises:
            ConfigError: the file cannot be read, or says something else.
        """
        path = folder / PLACES
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls()
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"cannot read {path}: {error}; put the authority's own back") from None
        hosts, server = values.pop("hosts", []), values.pop("server", "")
        texts = isinstance(hosts, list) and all(isinstance(host, str) and host for host in hosts)
        if values or not texts or not isinstance(server, str):
            raise ConfigError(f'{path} must say server = "HOST:PORT" and hosts = ["HOST"], and no more')
        return cls(tuple(hosts), server)

    def write(self, folder: Path) -> None:
        """Writes the file.

        Raises:
            OSError: there is one, or it cannot be written.
        """
        lines = tomli_w.dumps({"server": self.server, "hosts": list(self.hosts)})
        write_private(folder / PLACES, (_HEADING + lines).encode())
