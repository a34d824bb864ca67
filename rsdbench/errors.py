"""Errors that a user can mend: one line, saying what is wrong and what would be right."""


class UsageError(ValueError):
    """Bad input. The command line prints its message as one line and exits with code 2."""
