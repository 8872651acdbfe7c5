"""The one exception for mistakes a user can mend, and how it quotes the errors of other libraries."""


class UserError(Exception):
    """A mistake of the user's: a missing file, a wrong key, a malformed row.

    The message says what was wrong, where (file, row, key) and what to do about it. The commands print it on standard
    error, without a traceback, and exit with code 2; in Python it is an ordinary exception.
    """


def one_line(error: BaseException) -> str:
    """The beginning of what another library's error says, on one line; its kind, if it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__
