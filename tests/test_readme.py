"""The pages name tests and files that exist; a checkout that is not installed says what to do."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_every_line_of_the_table_names_a_test_that_exists():
    page = (ROOT / "docs" / "compatibility.md").read_text()
    table = re.search(r"\| test \|\n\| --- .*\n((?:\|.*\n)+)", page)[1].splitlines()
    assert len(table) > 30
    for line in table:
        file = None  # a name without a file belongs to the file before it
        tests = re.findall(r"`(?:(test_\w+\.py)::)?(test_\w+)`", line.split(" | ")[-1])
        assert tests, f"no test in {line}"
        for other, name in tests:
            file = other or file
            [path] = (ROOT / "tests").rglob(file)
            source = path.read_text()
            assert f"def {name}(" in source, f"{file} has no {name}"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/where.md", "docs/index.md"])
def test_the_files_that_a_page_names_exist(page):
    text = (ROOT / page).read_text()
    paths = re.findall(r"`((?:csrc|rnnfast|tests|benchmarks|docs|examples)/[\w./*-]+)`", text)
    for path in paths:
        # NAME stands for a file that the reader would add.
        assert "NAME" in path or any(ROOT.glob(path.rstrip("/"))), f"{page} names {path}"


def test_source_without_the_compiled_part_says_so(tmp_path):
    shutil.copytree(ROOT / "rnnfast", tmp_path / "rnnfast", ignore=shutil.ignore_patterns("*.so"))
    # Without this, the finder of an editable install would find the compiled part elsewhere.
    finders = "[f for f in sys.meta_path if 'ditable' not in str(f)]"
    code = f"import sys; sys.meta_path = {finders}; import rnnfast"
    argv = [sys.executable, "-c", code]
    run = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    last = run.stderr.splitlines()[-1]
    assert run.returncode == 1 and last.startswith("ImportError: the compiled part of rnnfast in")
    assert str(tmp_path) in last and "pip install -e ." in last
