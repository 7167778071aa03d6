"""Answers in batches, sorted by length; in float32 the same as one by one."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from tometune.common.distributed import gather, processes, rank
from tometune.evaluation.batches import Batches, noise_of
from tometune.evaluation.engines.base import Engine
from tometune.evaluation.engines.plain import Plain
from tometune.evaluation.prompts import Prompt, encode

Messages = Sequence[dict[str, str]]
Advance = Callable[[int], None]
"""Called with the number of answers that were just finished."""


@dataclass(frozen=True)
class Generation:
    """One answer."""

    prompt: str
    """The text the model saw, with the chat template's markers."""

    text: str
    """The answer without special tokens and outer white space."""

    tokens: int
    """Tokens generated, the end of turn included."""

    ended: bool
    """Whether the model ended its turn; otherwise it ran into `max_new_tokens`."""

    shortened: bool
    """Whether the prompt was cut to `max_prompt_tokens`."""


@dataclass(frozen=True)
class Generations:
    """The answers to a list of conversations, in their order."""

    answers: list[Generation]
    seconds: float

    batch_size: int
    """Prompts at once, the smallest number in any process."""

    @property
    def tokens(self) -> int:
        """Tokens generated in all."""
        return sum(answer.tokens for answer in self.answers)

    @property
    def shortened(self) -> int:
        """Prompts that were cut."""
        return sum(answer.shortened for answer in self.answers)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Messages],
    max_new_tokens: int,
    batch_size: int,
    max_prompt_tokens: int,
    advance: Advance = lambda _: None,
    temperature: float = 0.0,
    seed: int = 0,
    engine: Engine | None = None,
) -> Generations:
    """Answer each conversation, greedily unless a temperature is given.

    Of several processes each answers its share, and all of them return all answers.

    Args:
        model: a causal language model, with or without an adapter; its mode (train or eval) is given back.
        tokenizer: its tokenizer, with a chat template and a pad token.
        conversations: each a list of `{role, content}`, the last one the user's.
        max_new_tokens: longest answer.
        batch_size: prompts at once; the longest come first, so memory runs out at the start or not at all. If it does,
            half as many are tried once.
        max_prompt_tokens: longer prompts lose the middle of their last user message.
        advance: told of each batch of answers.
        temperature: 0 is greedy; above 0 each answer is drawn from a stream of its own.
        seed: of those streams, `seeds.generation`.
        engine: what generates; None is the model's own `generate`.

    Raises:
        UserError: a prompt cannot be shortened enough, or the device has too little memory.
    """
    start = time.perf_counter()
    prompts = [encode(tokenizer, messages, max_prompt_tokens) for messages in conversations]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].ids), reverse=True)
    config = greedy(model, tokenizer, max_new_tokens)
    own = order[rank() :: processes()]
    answers: dict[int, Generation] = {}
    batches = Batches(engine or Plain(model), batch_size, config)
    with _evaluating(model):
        while len(answers) < len(own):
            rest = own[len(answers) :]
            new = batches.answer(
                [prompts[index].ids for index in rest[: batches.size]],
                partial(noise_of, temperature, seed, rest),
            )
            for index, ids in zip(rest, new, strict=False):
                answers[index] = _decode(tokenizer, prompts[index], ids, config)
            advance(len(new))
    answers = dict(gather(list(answers.items())))
    smallest = min(gather([batches.size]))
    return Generations([answers[n] for n in range(len(prompts))], time.perf_counter() - start, smallest)


def greedy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> GenerationConfig:
    """Return a config that leaves nothing to the model's own, which fills every value that is not set.

    Llama's asks for sampling at temperature 0.6, others for a repetition penalty: here every one is neutral. Only the
    end-of-turn tokens are taken over, beside the tokenizer's.
    """
    own = model.generation_config.eos_token_id
    stops = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        min_new_tokens=0,
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        min_p=None,
        typical_p=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        length_penalty=1.0,
        use_cache=True,
        eos_token_id=sorted(stops),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )


def _decode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, ids: list[int], config: GenerationConfig) -> Generation:
    """Cut an answer at its end of turn and turn it into text."""
    stops = set(config.eos_token_id)
    end = next((position for position, token in enumerate(ids) if token in stops), None)
    kept = ids if end is None else ids[:end]
    text = tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
    return Generation(prompt.text, text, len(kept) + (end is not None), end is not None, prompt.shortened)


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Turn dropout off for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
