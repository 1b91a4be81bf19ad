"""The examples in the docstrings of the language models."""

import doctest
import importlib
import pkgutil

import pytest

from rnnfast import lm

MODULES = [m.name for m in pkgutil.walk_packages(lm.__path__, "rnnfast.lm.") if not m.ispkg]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
