"""What README.md claims by the name of a test."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_line_of_the_table_names_a_test_that_exists():
    readme = (ROOT / "README.md").read_text()
    table = re.search(r"\| test \|\n\| --- .*\n((?:\|.*\n)+)", readme)[1].splitlines()
    assert len(table) > 20
    for line in table:
        file, names = re.search(r"`(test_\w+\.py)::(test_.*)` \|$", line).groups()
        source = (ROOT / "tests" / file).read_text()
        for name in re.findall(r"test_\w+", names):
            assert f"def {name}(" in source, f"{file} has no {name}"
