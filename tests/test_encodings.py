"""Every text file that Suture reads or writes is UTF-8, whatever the locale: each call says so."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
    path
    for package in ("models", "runtime", "threats", "launch", "studies", "suture")
    for path in (ROOT / package).rglob("*.py")
)


def without_encoding(source: str) -> list[int]:
    """The lines that open text and leave the encoding to the locale."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [call.lineno for call in calls if _opens_text(call) and not _says_encoding(call)]


def _opens_text(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if name in ("read_text", "write_text"):
        return True
    if name not in ("open", "fdopen", "NamedTemporaryFile", "TemporaryFile"):
        return False
    given = [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
    words = [one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    modes = [word for word in words if set(word) <= set("rwax+bt")]
    if (
        not modes
    ):  # a path's open() without arguments reads text, and so does that of a descriptor or of a name alone
        return name in ("open", "fdopen") and len(given) <= (
            isinstance(call.func, ast.Name) or name == "fdopen"
        )
    return "b" not in modes[0]


def _says_encoding(call: ast.Call) -> bool:
    return any(word.arg == "encoding" for word in call.keywords)


def test_no_text_file_follows_the_locale():
    found = {path.relative_to(ROOT): without_encoding(path.read_text(encoding="utf-8")) for path in FILES}
    assert len(found) > 300 and not {path: lines for path, lines in found.items() if lines}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("path.read_text()", True),
        ("path.read_text(encoding='utf-8')", False),
        ("path.write_text(text, newline='')", True),
        ("open(path)", True),
        ("open(path, 'rb')", False),
        ("path.open()", True),
        ("path.open('a')", True),
        ("path.open('xb')", False),
        ("os.fdopen(number, 'w')", True),
        ("os.fdopen(number)", True),
        ("Image.open(path)", False),
        ("path.open('w', encoding='utf-8')", False),
    ],
)
def test_calls_that_follow_the_locale_are_found(source, found):
    assert bool(without_encoding(source)) is found
