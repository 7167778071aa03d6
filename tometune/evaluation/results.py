"""Files of scores: one JSON line an example, and beside it what it was made from."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from tometune.common.errors import UserError
from tometune.common.files import write_json, write_text


@dataclass(frozen=True)
class TaskResult:
    """What a model reached on a task, and what it took."""

    means: dict[str, float]
    """Plain mean of each column of scores."""

    examples: int
    seconds: float
    """Time of generation."""

    tokens: int
    """Tokens generated."""

    shortened: int
    """Prompts that were cut to `eval.max_prompt_tokens`."""

    unended: int
    """Answers that ran into `max_new_tokens`."""

    engine: str
    """What generated the answers."""

    batch_size: int
    """Prompts at once, the smallest number that was needed."""

    def line(self) -> str:
        """Return one line for the log."""
        scores = ", ".join(f"{name} {value:.4f}" for name, value in self.means.items())
        speed = self.tokens / self.seconds if self.seconds else 0.0
        return f"{scores}; {self.examples} examples, {self.seconds:.0f} s, {speed:.0f} tokens/s"


def write_result(path: Path, key: dict[str, Any], lines: Sequence[str], result: TaskResult) -> None:
    """Write `<task>.jsonl`, then `<task>.json` with its digest: without the second, the first does not count.

    Args:
        path: the `.jsonl` file.
        key: everything the scores depend on.
        lines: one JSON object an example.
        result: the means and counts.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{line}\n" for line in lines)
    write_text(path, text)
    write_json(path.with_suffix(".json"), {"key": key, "sha256": _digest(text.encode()), **asdict(result)})


def read_result(path: Path, key: dict[str, Any]) -> TaskResult | None:
    """Return the kept result of a task, or None if there is none, it is broken, or it was made from something else."""
    try:
        kept = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        content = path.read_bytes()
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(kept, dict) or kept.pop("key", None) != key or kept.pop("sha256", None) != _digest(content):
        return None
    return TaskResult(**kept)


def read_scores(path: Path) -> dict[str, dict[str, float]]:
    """Return the scores of a `<task>.jsonl` by example id.

    Raises:
        UserError: the file is missing or broken.
    """
    try:
        with path.open(encoding="utf-8") as lines:  # not splitlines(), which also splits at U+2028 in an answer
            rows = [json.loads(line) for line in lines]
        return {row["id"]: row["scores"] for row in rows}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; score the run again with python -m tometune.evaluate run=…") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not a file of scores; delete it and run the same command again") from None


def _digest(content: bytes) -> str:
    """Return the sha256, in hex."""
    return sha256(content).hexdigest()
