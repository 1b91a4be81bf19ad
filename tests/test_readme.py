"""What README.md claims by the name of a test."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_line_of_the_table_names_a_test_that_exists():
    readme = (ROOT / "README.md").read_text()
    table = re.search(r"\| test \|\n\| --- .*\n((?:\|.*\n)+)", readme)[1].splitlines()
    assert len(table) > 30
    for line in table:
        file = None  # of the names that follow it
        tests = re.findall(r"`(?:(test_\w+\.py)::)?(test_\w+)`", line.split(" | ")[-1])
        assert tests, f"no test in {line}"
        for other, name in tests:
            file = other or file
            source = (ROOT / "tests" / file).read_text()
            assert f"def {name}(" in source, f"{file} has no {name}"
