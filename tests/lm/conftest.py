"""What the tests of the language models share as fixtures."""

import pytest
import torch


@pytest.fixture(autouse=True)
def keep_threads():
    """Training sets torch's number of threads, which other tests must not notice."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
