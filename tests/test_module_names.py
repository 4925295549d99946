"""Test modules are imported by their bare names: two of one name would stand for each other."""

import ast
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parent


def test_no_two_modules_of_the_tests_have_one_name():
    names = Counter(file.name for file in TESTS.rglob("*.py"))
    # pytest loads every conftest.py under this name; nobody imports one, see below.
    twice = {name for name, times in names.items() if times > 1} - {"conftest.py", "__init__.py"}
    assert not twice


def test_nobody_imports_a_conftest():
    importing = [
        file.name
        for file in TESTS.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if (isinstance(node, ast.ImportFrom) and node.module == "conftest")
        or (isinstance(node, ast.Import) and any(alias.name == "conftest" for alias in node.names))
    ]
    assert not importing
