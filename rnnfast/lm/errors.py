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
