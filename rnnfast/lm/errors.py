"""What goes wrong for reasons that the user can mend, and the checks of what everybody takes."""

import torch


class UserError(ValueError):
    """What the user can mend: the message is one line and says what to do about it.

    The command line prints it without a traceback and exits with status 2.
    """


class MissingPackage(UserError):
    """What was asked for needs a package that is optional and not there."""


class Interrupted(Exception):
    """Training was stopped by a signal; `signum` is its number. The run is saved already."""

    def __init__(self, signum: int):
        super().__init__(f"interrupted by signal {signum}")
        self.signum = signum


def check_seed(seed: int, end: int = 2**63) -> None:
    """Raise UserError for a seed that is not in [0, `end`), a power of two."""
    if not 0 <= seed < end:
        raise UserError(f"seed must be in [0, 2**{end.bit_length() - 1}), not {seed}")


def check_device(device: str) -> None:
    """Raise UserError for a device that is not there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} is not available here: use --device cpu") from error
