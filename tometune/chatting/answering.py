"""One question to one or two models, with the same settings and seed; both answer at once, a few tokens each."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tometune.chatting.conversation import Answer, Turn
from tometune.chatting.engine import BURST, End, Engine, Message, Piece, Settings, Stopped
from tometune.chatting.fitting import fit


@dataclass(frozen=True)
class Step:
    """What is new in one model's answer."""

    side: int
    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    end: End | None = None
    left_out: str = ""


def answers(
    engines: Mapping[int, Engine], asked: Mapping[int, Sequence[Message]], settings: Settings, stopped: Stopped
) -> Iterator[Step]:
    """Yield the steps of all answers, a few of each in turn.

    Args:
        engines: by the number of the model.
        asked: what each of them is given.
        settings: the same for all of them.
        stopped: whether the answers are not wanted any more.
    """
    running = {side: _steps(side, engine, asked[side], settings, stopped) for side, engine in engines.items()}
    while running:
        for side, steps in list(running.items()):
            for _ in range(BURST if len(running) > 1 else 1):
                step = next(steps, None)
                if step is None:
                    del running[side]
                    break
                yield step


def _steps(
    side: int, engine: Engine, messages: Sequence[Message], settings: Settings, stopped: Stopped
) -> Iterator[Step]:
    """Yield the steps of one model's answer, with the time it took itself."""
    start = time.perf_counter()
    fitted = fit(engine, messages, settings.max_new_tokens)
    pieces = engine.stream(fitted.messages, settings, stopped)
    spent = time.perf_counter() - start
    yield Step(side, left_out=fitted.said())
    while True:
        start = time.perf_counter()
        piece: Piece | None = next(pieces, None)
        spent += time.perf_counter() - start
        if piece is None:
            return
        yield Step(side, piece.text, piece.tokens, spent, piece.end)


def take(turn: Turn, step: Step) -> None:
    """Add a step to its answer."""
    answer = turn.answers[step.side]
    answer.text = (answer.text + step.text).lstrip()
    answer.left_out = answer.left_out or step.left_out
    if step.tokens:
        answer.tokens, answer.seconds = step.tokens, step.seconds
        answer.first = answer.first or step.seconds
    if step.end is not None:
        finish(answer, step.end)


def finish(answer: Answer, end: End) -> None:
    """Note why an answer ended; white space around it goes, as it does where answers are scored."""
    answer.text = answer.text.strip()
    answer.end = str(end)
