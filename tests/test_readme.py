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
        names = re.findall(r"`([^`]+)`", line.split(" | ")[-1])
        assert names, f"no test in {line}"
        for name in names:
            file, _, function = name.partition("::")
            assert function and f"def {function}(" in (ROOT / file).read_text(), name


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
PAGES += [*sorted((ROOT / "csrc").rglob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = "csrc|rnnfast|tests|benchmarks|docs|examples"


@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in PAGES])
def test_the_files_that_a_page_names_exist(page):
    text, folder = (ROOT / page).read_text(), (ROOT / page).parent
    paths = re.findall(rf"`((?:{FOLDERS})/[\w./*-]+)`", text)
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    assert paths or links, f"the test finds no file in {page}"
    for path in paths:
        # NAME stands for a file that the reader would add.
        assert "NAME" in path or any(ROOT.glob(path.rstrip("/"))), f"{page} names {path}"
    for link in links:
        assert (folder / link).exists(), f"{page} links to {link}"


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
