"""Errors whose text is meant for the user: one line that says where, what and what to do."""

from difflib import get_close_matches


class UserError(Exception):
    """The user's input, config or machine does not allow this; ends the command with exit status 2.

    The message is one line: the full key or file, what is wrong, and the fix.
    """


class ConfigError(UserError):
    """One or more things are wrong in the config; `problems` holds one line each."""

    def __init__(self, problems: list[str]) -> None:
        """Join the problems, one a line."""
        self.problems = problems
        super().__init__("\n".join(problems))


def did_you_mean(wrong: str, valid: list[str], most: int = 2) -> str:
    """Return `"; did you mean X, Y?"` with the names nearest to `wrong`, or an empty string."""
    close = get_close_matches(wrong, valid, n=most, cutoff=0.6)
    return f"; did you mean {', '.join(close)}?" if close else ""
