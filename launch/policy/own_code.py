"""Which files an import would run, found without running one of them: a name that a server sends is first looked at."""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from collections.abc import Collection, Sequence
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec
from pathlib import Path

from suture.models import plugins
from suture.runtime.errors import PolicyError


def check_files(kind: str, name: str, digests: Collection[str]) -> None:
    """Refuses code of one's own that was not read and listed, without running it.

    Args:
        kind: of the plug-in, as its option is called.
        name: ``module:FILE_OR_PACKAGE:NAME``, or an entry point's.
        digests: SHA-256 (hex) of the files that may run.

    Raises:
        PolicyError: a file is not found or not listed.
    """
    try:
        where, _ = plugins.place(kind, name)
    except ValueError as error:
        raise PolicyError(f"policy own_code: {error!s:.200}") from None
    for file in [Path(where).expanduser()] if where.endswith(".py") else module_files(where):
        try:
            content = file.read_bytes()
        except OSError as error:
            raise PolicyError(f"policy own_code: cannot read {file}: {error.strerror}") from None
        digest = hashlib.sha256(content).hexdigest()
        if content and digest not in map(str.lower, digests):
            raise PolicyError(
                f"policy own_code: {name} would run {file}, whose SHA-256 {digest} is not listed; read that file, "
                "and add the digest to own_code in policy.toml where it may run"
            )


def module_files(module: str) -> list[Path]:
    """The files that ``import module`` runs by that name: each package's ``__init__``, the module's own last.

    ``importlib.util.find_spec`` would not do: for "a.b" it imports a.

    Args:
        module: dotted name, as in ``--model module:PACKAGE.FILE:NAME``; looked for where that option looks.

    Raises:
        PolicyError: no file is found, or it is a module of Python's own without one.
    """
    importlib.invalidate_caches()
    places: Sequence[str] = plugins.search_path()
    files, parts = [], module.split(".")
    for number in range(1, len(parts) + 1):
        name = ".".join(parts[:number])
        if not parts[number - 1].isidentifier():
            raise PolicyError(f"policy own_code: {module!r:.60} is no name of a module; refused")
        if BuiltinImporter.find_spec(name) is not None or FrozenImporter.find_spec(name) is not None:
            raise PolicyError(f"policy own_code: {name!r:.60} is a module of Python itself; refused")
        found = _find(name, places)
        if found is None:
            raise PolicyError(
                f"policy own_code: there is no module {name!r:.60} at this site; put its file on PYTHONPATH or into "
                f"{Path.cwd()}"
            )
        if found.origin is not None:
            files.append(Path(found.origin))
        places = found.submodule_search_locations or ()
    return files


def _find(name: str, places: Sequence[str]) -> ModuleSpec | None:
    """The module ``name`` as Python's path-based finder would find it; a folder without ``__init__`` has no origin."""
    folders: list[str] = []
    for place in places:
        finder = pkgutil.get_importer(place or str(Path.cwd()))
        spec = None if finder is None else finder.find_spec(name)
        if spec is not None and spec.loader is not None:
            return spec
        if spec is not None:
            folders += spec.submodule_search_locations or ()
    if not folders:
        return None
    package = ModuleSpec(name, None, is_package=True)
    package.submodule_search_locations = folders
    return package
