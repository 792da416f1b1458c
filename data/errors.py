"""What is said to the user: errors they can fix, and warnings about what their data allow."""


class UserError(ValueError):
    """Bad input whose message is one line: what is wrong and what to do about it.

    Commands print it without a traceback and exit with code 2.
    """


class DataWarning(UserWarning):
    """The data allow what is asked for, but not quite as asked; commands print it as one line."""
