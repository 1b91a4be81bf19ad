"""n-gram models: counts, smoothing, look-up, and files in the ARPA format."""

from .smoothing import SMOOTHINGS

__all__ = ["SMOOTHINGS"]
