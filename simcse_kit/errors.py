"""The one exception for mistakes a user can mend."""


class UserError(Exception):
    """A mistake of the user's: a missing file, a wrong key, a malformed row.

    The message says what was wrong, where (file, row, key) and what to do about it. The commands print it on standard
    error, without a traceback, and exit with code 2; in Python it is an ordinary exception.
    """
