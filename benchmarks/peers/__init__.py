"""The contestants: rnnfast, torch and the recurrent layers of other libraries.

A contestant is a subclass of `Peer` with one method, `call`, which builds the call that is timed.
`contest.py` runs this package as a program, once for each contestant, and asks it for results and
samples.
"""

from .base import NotRunError, Peer
from .onednn import onednn_environment, onednn_roots, onednn_version

__all__ = ["NotRunError", "Peer", "onednn_environment", "onednn_roots", "onednn_version"]
