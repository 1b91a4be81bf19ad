"""Errors that the user can correct, and the check of a seed."""


class UserError(ValueError):
    """An error that the user can correct. Its message is one line that says what to do.

    The command line prints the message without a traceback and exits with status 2.
    """


class ArgumentError(UserError):
    """An error whose message names arguments as in Python, as in "top_k must be ...".

    The command line names its options instead, as in "--top-k must be ...".

    Args:
        message: one line that says what to do.
        *names: the arguments in the message. Without any it is the first word.
    """

    def __init__(self, message: str, *names: str):
        super().__init__(message)
        self.names = names or (message.split()[0],)


class DataWarning(UserWarning):
    """Data that can be used, although the result may not be what the user wants.

    The command line prints the message on one line of standard error.
    """


class MissingPackage(UserError):
    """An optional package that this request needs is not installed."""


class Interrupted(Exception):
    """A signal, whose number is `signum`, has stopped the training. The run is already saved."""

    def __init__(self, signum: int):
        super().__init__(f"interrupted by signal {signum}")
        self.signum = signum


def check_seed(seed: int, end: int = 2**63) -> None:
    """Raise UserError for a seed that is not in [0, `end`), a power of two."""
    if not 0 <= seed < end:
        raise ArgumentError(f"seed must be in [0, 2**{end.bit_length() - 1}), not {seed}")
