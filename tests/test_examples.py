"""The scripts in examples/ and the Python code of the pages in docs/ run as they stand."""

import importlib.util
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

import rnnfast

ROOT = Path(__file__).parent.parent
# What an example or a page needs besides rnnfast, by its name.
NEEDS = {
    "export_onnx": ["onnx", "onnxscript", "onnxruntime"],
    "compatibility": ["onnxscript"],
    "echo_state": ["sklearn", "matplotlib"],
    "reservoirs": ["sklearn"],
    # neurogym needs older versions of NumPy and gymnasium, so it is not in the extra `test`.
    "decision_task": ["neurogym"],
    "recurrent_policy": ["gymnasium"],
}
# Options that an example is run with besides running it as it stands.
OPTIONS = {
    "decision_task": ["--trials", "500", "--loop"],
    "recurrent_policy": ["--updates", "2", "--without-resets"],
}
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
# tests/test_guide.py runs the page that is left out, together with its commands.
PAGES = [
    page
    for page in sorted((ROOT / "docs").glob("*.md"))
    if PYTHON.search(page.read_text()) and page.stem != "language-models"
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Run in an empty folder, on one thread, and leave no trace in torch's global state."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)
    rnnfast.set_cuda_kernel(None)


def skip_without(name):
    missing = [m for m in NEEDS.get(name, ()) if not importlib.util.find_spec(m)]
    if missing:
        pytest.skip(f"{name} needs {', '.join(missing)}")


@pytest.mark.parametrize(
    ("path", "options"),
    [
        pytest.param(path, options, id=" ".join([path.stem, *options]))
        for path in EXAMPLES
        for options in ([], OPTIONS.get(path.stem))
        if options is not None
    ],
)
def test_example(path, options, monkeypatch, capsys):
    skip_without(path.stem)
    monkeypatch.setattr(sys, "argv", [path.name, *options])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_every_example_is_listed():
    index = (ROOT / "docs" / "index.md").read_text()
    assert len(EXAMPLES) == 8
    for path in EXAMPLES:
        assert f"(../examples/{path.name})" in index


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_python_of_a_page(path):
    skip_without(path.stem)
    names = {}
    for block in PYTHON.findall(path.read_text()):
        exec(compile(block, path.name, "exec"), names)
