"""The one exception that means "the user can fix this"."""


class UserError(ValueError):
    """Bad input whose message is one line: what is wrong and what to do about it.

    Commands print it without a traceback and exit with code 2.
    """
