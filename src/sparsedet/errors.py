"""The one exception that means "your input is wrong", not "this program is wrong".

The command line turns it into one line on stderr and exit code 2.
"""


class InputError(ValueError):
    """A file or argument that cannot be used; the message names it and says what to do."""
