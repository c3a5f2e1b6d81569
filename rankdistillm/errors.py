"""The one exception that is the user's to mend."""


class InputError(ValueError):
    """What the user gave cannot be used; the message names file, line and remedy in one line.

    The commands print it without a traceback and exit with a non-zero status.
    """
