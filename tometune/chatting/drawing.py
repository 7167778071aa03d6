"""Drawing the next token."""

import torch
from transformers import TopPLogitsWarper

from tometune.chatting.engine import Settings


def draw(logits: torch.Tensor, settings: Settings, generator: torch.Generator) -> int:
    """Return the next token.

    It is drawn on the CPU in float32, so that a seed gives the same draws on every device.

    Args:
        logits: [vocabulary].
        settings: temperature (0 is greedy) and top-p.
        generator: of the CPU; moved on by one draw unless greedy.
    """
    scores = logits.float().cpu()
    if settings.temperature == 0:
        return int(scores.argmax())
    scores = scores / settings.temperature
    if settings.top_p < 1:
        nothing = torch.empty((1, 0), dtype=torch.long)  # the warper does not look at the tokens so far
        scores = TopPLogitsWarper(settings.top_p)(nothing, scores[None])[0]
    return int(torch.multinomial(scores.softmax(-1), 1, generator=generator))
