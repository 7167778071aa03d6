"""One batch of rows that decode together; all state of a step is in tensors at fixed addresses, as graphs need."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tometune.evaluation.engines import UnsupportedError
from tometune.evaluation.engines.ragged import Layout, RaggedCache

PREFILL_TOKENS = 16_384  # prompt tokens per forward pass; more is not faster and takes memory
Choose = Callable[[Tensor], Tensor]  # turns logits [rows, vocabulary] into scores; the largest is the next token


class Decoder:
    """R rows in a cache of S slots. Rows without a prompt use slot 0, which belongs to no row."""

    def __init__(
        self, model: PreTrainedModel, cache: RaggedCache, rows: int, longest_row: int, stops: Sequence[int], pad: int
    ) -> None:
        """Allocate, and run one idle step.

        The model is in eval mode and attends by `ragged_attention`. `longest_row` is the maximum number of tokens of a
        prompt and its answer; `stops` end an answer, and `pad` follows the end.

        Raises:
            UnsupportedError: the model does not call `ragged_attention`.
        """
        self.model, self.cache, self.rows, self.pad = model, cache, rows, pad
        device = model.device
        self.token = torch.full((rows,), pad, device=device)
        self.position = torch.zeros(rows, dtype=torch.int64, device=device)
        self.ended = torch.ones(rows, dtype=torch.bool, device=device)
        self.step_number = torch.zeros(1, dtype=torch.int64, device=device)
        self.answers = torch.full((longest_row, rows), pad, device=device)
        self.stops = torch.tensor(sorted(stops), device=device)
        self.layout = Layout(
            slots=torch.zeros(rows, dtype=torch.int64, device=device),
            first=torch.arange(rows + 1, dtype=torch.int32, device=device),
            start=torch.zeros(rows + 1, dtype=torch.int32, device=device),
            used=torch.ones(rows, dtype=torch.int32, device=device),
            longest_query=1,
            longest_row=longest_row,
        )
        self.logits = self._forward(self.token, self.position, self.layout, None)
        if self.layout.calls != len(cache.layers):
            raise UnsupportedError(
                f"only {self.layout.calls} of its {len(cache.layers)} layers use the given attention"
            )

    def start(self, prompts: Sequence[list[int]], steps: int, choose: Choose) -> None:
        """Read at most `rows` prompts and choose the first token of each answer, of which there are at most `steps`.

        Raises:
            ValueError: the prompts do not fit into the cache, or one is too long.
        """
        if slots_for(prompts, steps) > self.cache.slots or max(map(len, prompts)) + steps > self.layout.longest_row:
            raise ValueError(f"{slots_for(prompts, steps)} slots of {self.cache.slots} for rows of {self.layout}")
        count, device = len(prompts), self.token.device
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        begins = 1 + torch.cumsum(lengths + steps, 0) - (lengths + steps)
        self.idle()
        self.ended[:count] = False
        self.position[:count] = (lengths - 1).to(device)
        self.layout.used[:count] = lengths.to(device, torch.int32)
        self.layout.start[:count] = begins.to(device, torch.int32)
        self.layout.slots[:count] = (begins + lengths - 1).to(device)
        for first, last in _chunks([len(prompt) for prompt in prompts]):
            self.logits[first:last] = self._prefill(prompts[first:last], begins[first:last])
        self.advance(choose)

    def forward(self) -> None:
        """Run the model on each row's last token; fills `logits`."""
        self.logits.copy_(self._forward(self.token, self.position, self.layout, None))

    def advance(self, choose: Choose) -> None:
        """Choose each row's next token from `logits`, and advance the rows that have not ended."""
        token = choose(self.logits).argmax(dim=-1)
        token = torch.where(self.ended, self.pad, token)
        self.answers.index_copy_(0, self.step_number, token[None])
        self.step_number += 1
        self.token.copy_(token)
        self.ended |= (token[:, None] == self.stops).any(dim=-1)
        moves = ~self.ended
        self.position += moves
        self.layout.slots += moves
        self.layout.used += moves

    def idle(self) -> None:
        """Reset every row to having no prompt."""
        self.token.fill_(self.pad)
        self.ended.fill_(True)
        self.answers.fill_(self.pad)
        for tensor in (self.position, self.step_number, self.layout.slots, self.layout.start):
            tensor.zero_()
        self.layout.used.fill_(1)

    def _prefill(self, prompts: Sequence[list[int]], begins: Tensor) -> Tensor:
        """Read whole prompts without padding; returns the logits after each of them."""
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        ends = torch.cumsum(lengths, 0)
        position = torch.cat([torch.arange(len(prompt)) for prompt in prompts])
        device = self.token.device
        layout = Layout(
            slots=(position + torch.repeat_interleave(begins, lengths)).to(device),
            first=torch.cat([torch.zeros(1, dtype=torch.int64), ends]).to(device, torch.int32),
            start=torch.cat([begins, begins[-1:]]).to(device, torch.int32),
            used=lengths.to(device, torch.int32),
            longest_query=int(lengths.max()),
            longest_row=int(lengths.max()),
        )
        ids = torch.tensor([token for prompt in prompts for token in prompt])
        return self._forward(ids.to(device), position.to(device), layout, (ends - 1).to(device))

    def _forward(self, token: Tensor, position: Tensor, layout: Layout, keep: Tensor | None) -> Tensor:
        """Run the model on N tokens; returns logits [N or len(keep), vocabulary]."""
        self.cache.follow(layout)
        output = self.model(
            input_ids=token[None],
            position_ids=position[None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=0 if keep is None else keep,
            layout=layout,
        )
        logits: Tensor = output.logits[0]
        return logits


def slots_for(prompts: Sequence[list[int]], steps: int) -> int:
    """Return the number of slots for the prompts and their answers, including slot 0."""
    return 1 + sum(map(len, prompts)) + len(prompts) * steps


def _chunks(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Split rows into ranges of at most PREFILL_TOKENS, or of one row that is longer."""
    ranges, first, tokens = [], 0, 0
    for row, length in enumerate(lengths):
        if row > first and tokens + length > PREFILL_TOKENS:
            ranges.append((first, row))
            first, tokens = row, 0
        tokens += length
    return [*ranges, (first, len(lengths))]
