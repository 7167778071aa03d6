"""Errors for the user: one line that says where, what is wrong and how to fix it."""

import re
import shlex
from collections.abc import Iterable
from difflib import SequenceMatcher


class UserError(Exception):
    """The user's input, config or machine does not allow this; ends the command with exit status 2.

    The message is one line: the full key or file, what is wrong, and the fix.
    """


class ConfigError(UserError):
    """The config is wrong; `problems` has one line each."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


def chain_of(error: BaseException) -> list[BaseException]:
    """Return an error and its causes, the last one being the first that was raised."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def one_line(error: BaseException) -> str:
    """Return the text of an error without line breaks."""
    return " ".join(str(error).split())


def shell_word(text: str) -> str:
    """Return a text as one word of a POSIX shell."""
    if "'" in text and not set(text) & set("$`\\!"):  # shlex.quote would be valid, but hard to read
        return '"{}"'.format(text.replace('"', '\\"'))
    return shlex.quote(text)


def hydra_text(text: str, quote: str = '"') -> str:
    """Return a text as a quoted value of Hydra, where quotes are escaped, and only those backslashes before them."""
    escaped = re.sub(rf"(\\*)({quote}|$)", lambda found: 2 * found[1] + (found[2] and f"\\{found[2]}"), text)
    return f"{quote}{escaped}{quote}"


def did_you_mean(wrong: str, valid: Iterable[str]) -> str:
    """Return `"; did you mean X, Y?"` with the names nearest to `wrong`, or an empty string."""
    near = nearest(wrong, valid)
    return f"; did you mean {', '.join(near)}?" if near else ""


def some(names: Iterable[object], most: int) -> str:
    """List up to `most` names, and say how many more there are."""
    texts = list(map(str, names))
    return ", ".join(texts[:most]) + (f" and {len(texts) - most:,} more" if len(texts) > most else "")


def nearest(wrong: str, valid: Iterable[str]) -> list[str]:
    """Return the two names most similar to `wrong`, best first; equally similar ones in the order of `valid`.

    Similar means a share of matching characters of at least 0.7 and close to the best; a name that begins or ends with
    `wrong` is similar too.
    """

    def similarity(name: str) -> float:
        ratio = SequenceMatcher(None, name.lower(), wrong.lower()).ratio()
        return max(ratio, 0.85) if wrong and (name.startswith(wrong) or name.endswith(wrong)) else ratio

    scores = {name: similarity(name) for name in valid}
    best = max(scores.values(), default=0.0)
    near = [name for name, score in scores.items() if score >= 0.7 and score > best - 0.15]
    return sorted(near, key=scores.__getitem__, reverse=True)[:2]
