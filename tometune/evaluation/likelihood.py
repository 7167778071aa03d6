"""The metric `nll`: bits per byte that a model needs for the references of an example; lower is better.

It is the cross entropy of a reference given the prompt, -log2 p(reference | prompt), divided by the reference's UTF-8
bytes, so that models with other tokenizers can be compared (The Pile, Gao et al. 2020, arXiv:2101.00027, section 3.1).
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tometune.common.distributed import gather, processes, rank
from tometune.common.progress import progress
from tometune.config.eval import HELD_OUT
from tometune.data.encoder import Encoder, label_rows
from tometune.data.template import Template
from tometune.evaluation.generation import Prompt
from tometune.evaluation.tasks import Task

log = logging.getLogger(__name__)

# One forward pass has at most so many tokens with padding, and logits of so many. These are constants per kind of
# device, because in 16 bits other batches round differently. On a GPU, starting the kernels of a pass takes longer than
# running them, so passes are large: their logits take 1 GB for a vocabulary of 128,000.
AT_ONCE = {"cpu": (4_096, 1_024), "cuda": (16_384, 4_096)}
LOSSES_AT_ONCE = 1_024  # logits that are converted to float32 together

LONGEST = 2_048  # tokens of a reference that are scored; the rest of a longer one is left out, with its bytes
LOSS_ROWS = 200  # most rows of `eval/loss`


@dataclass(frozen=True)
class PromptedReference:
    """The tokens of a prompt and one reference."""

    ids: list[int]
    scored: int  # the last so many tokens are the reference's
    bytes: int  # of the reference in UTF-8


def bits_per_byte(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    references: Sequence[Sequence[str]],
) -> list[float]:
    """Return the bits per byte of each example, the mean over its references.

    Everything in the text that asks for the answer belongs to the prompt. White space that a template adds before the
    answer is scored with the reference, but not counted in its bytes. The token that ends the turn does not count. With
    several processes, each computes its share and all of them return all values.

    The model is in eval mode, the tokenizer has a chat template and a pad token, the prompts are as they were answered
    (`generation.encode`), and each has one or more non-empty references.
    """
    pairs = [(prompt, text) for prompt, texts in zip(prompts, references, strict=True) for text in texts]
    rows = _encoded(Encoder(Template(tokenizer)), pairs)
    found = []
    mine = list(batches(rows, *AT_ONCE.get(model.device.type, AT_ONCE["cpu"])))[rank() :: processes()]
    with progress("nll of references", sum(map(len, mine))) as advance:
        for batch in mine:
            bits = reference_bits(model, [rows[index] for index in batch], tokenizer.pad_token_id)
            found += [(index, each / rows[index].bytes) for index, each in zip(batch, bits, strict=True)]
            advance(len(batch))
    values = (value for _, value in sorted(gather(found)))
    return [fmean(islice(values, len(texts))) for texts in references]


def _encoded(encoder: Encoder, pairs: Sequence[tuple[Prompt, str]]) -> list[PromptedReference]:
    """Encode prompts and references together, as training does."""
    rendered, texts = [], []
    for prompt, reference in pairs:
        texts.append(reference.strip())
        rendered.append(encoder.template.prompt(list(prompt.messages), texts[-1]))
    rows = []
    for text, (ids, ((first, last),)) in zip(texts, encoder.encode(rendered), strict=True):
        if last - first > LONGEST:
            last = first + LONGEST
            text = encoder.decode(ids[first:last]).removeprefix(encoder.template.lead)
        rows.append(PromptedReference(ids[:last], last - first, len(text.encode())))
    return rows


def batches(rows: Sequence[PromptedReference], tokens: int, logits: int) -> Iterator[list[int]]:
    """Yield batches of row numbers, longest rows first, within both limits; a row that alone exceeds one is alone."""
    batch: list[int] = []
    most = 0  # tokens scored of a row of the batch
    for index in sorted(range(len(rows)), key=lambda index: (len(rows[index].ids), rows[index].scored), reverse=True):
        most = max(most, rows[index].scored)
        count = len(batch) + 1
        if batch and (count * len(rows[batch[0]].ids) > tokens or count * most > logits):
            yield batch
            batch, most = [], rows[index].scored
        batch.append(index)
    if batch:
        yield batch


def reference_bits(model: PreTrainedModel, rows: Sequence[PromptedReference], pad: int) -> list[float]:
    """Return the bits of each reference in one forward pass of a model in eval mode."""
    # Padded on the left, so that all references end together.
    width, scored = max(len(row.ids) for row in rows), max(row.scored for row in rows)
    ids = torch.tensor([[pad] * (width - len(row.ids)) + row.ids for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows], device=model.device)
    # Only the logits of references: those of the whole prompt would take most of the memory.
    keep = {"logits_to_keep": scored + 1} if model._supports_logits_to_keep() else {}
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, **keep)
    logits, targets = output.logits[:, -scored - 1 : -1].flatten(0, 1), ids[:, -scored:].flatten()
    parts = zip(logits.split(LOSSES_AT_ONCE), targets.split(LOSSES_AT_ONCE), strict=True)
    losses = torch.cat([cross_entropy(part.float(), target, reduction="none") for part, target in parts])
    losses = losses.view(len(rows), scored)
    nats = [losses[number, scored - row.scored :].double().sum() for number, row in enumerate(rows)]
    bits: list[float] = (torch.stack(nats) / math.log(2)).tolist()
    return bits


def loss_rows(tasks: Sequence[Task], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[dict[str, Any]]:
    """Return at most `LOSS_ROWS` rows of `input_ids` and `labels` for `eval/loss`, longest first.

    They are made like rows of the mix, from held-out rows or, if there are none, from the tasks' first references.
    """
    held_out = [task for task in tasks if task.name.startswith(HELD_OUT)]
    examples = [example for task in held_out or tasks for example in task.examples]
    chosen = np.unique(np.linspace(0, len(examples) - 1, LOSS_ROWS, dtype=int)).tolist()
    conversations = [
        [*examples[n].messages, {"role": "assistant", "content": examples[n].references[0].strip()}] for n in chosen
    ]
    template = Template(tokenizer)
    batch, _ = label_rows(Encoder(template).encode(template.render(conversations)), max_length)
    rows: list[dict[str, Any]] = batch.to_pylist()
    if not rows:
        log.warning("eval/loss: off, because no answer begins within trainer.max_length=%d", max_length)
    return sorted(rows, key=lambda row: len(row["labels"]), reverse=True)
