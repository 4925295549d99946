"""The pages for people: what they link to and which files they name is there, and README stays short.

Oracle: the disk, and the headings of the page that a link leads to.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OF_USERS = ("models/mynet.py",)  # in a project of their own, see docs/extending.md
PACKAGES = ("suture", "studies", "launch", "threats", "runtime", "models", "tests")


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """What a page's headings are called in a link, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)#?([^)\s:]*)\)", page.read_text()):
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_file_that_a_page_names_is_there(page):
    paths = re.findall(rf"(?<![\w/.])(?:{'|'.join(PACKAGES)})/[\w/.*-]*\w(?:\.py|/)", page.read_text())
    assert not [path for path in paths if path not in OF_USERS and not (ROOT / path).exists()]


def test_readme_is_read_in_a_few_minutes():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    assert len(text.split()) <= 1100
