"""Generates answers for batches of prompts, sorted by length; in float32 they equal those of one prompt at a time."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from tometune.common.distributed import gather, processes, rank
from tometune.common.errors import UserError
from tometune.common.seeding import stream
from tometune.data.encoder import Encoder
from tometune.data.template import Template, end_of_turn
from tometune.evaluation.engines import Engine

log = logging.getLogger(__name__)

Messages = Sequence[dict[str, str]]

GAP = " … "  # replaces the removed middle of a message


@dataclass(frozen=True)
class Prompt:
    """A conversation as the model sees it."""

    messages: Messages  # as shortened
    text: str  # with the chat template's markers
    ids: list[int]
    shortened: bool  # whether it was truncated to `max_prompt_tokens`


@dataclass(frozen=True)
class Generation:
    """One answer."""

    prompt: Prompt
    text: str  # without special tokens and outer white space
    tokens: int  # generated, including the end of turn
    ended: bool  # whether the model ended its turn; otherwise it reached `max_new_tokens`


@dataclass(frozen=True)
class Generations:
    """The answers to a list of conversations, in the same order."""

    answers: list[Generation]
    seconds: float
    batch_size: int  # prompts per batch; of several processes, the smallest


def share(order: list[int], batch_size: int) -> list[int]:
    """Return the prompts that this process answers: whole batches, as one process would answer them.

    In 16 bits an answer depends on the size of its batch, because products of other shapes round differently.
    """
    starts = range(0, len(order), batch_size)[rank() :: processes()]
    return [index for start in starts for index in order[start : start + batch_size]]


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Messages],
    max_new_tokens: int,
    batch_size: int,
    max_prompt_tokens: int,
    advance: Callable[[int], None] = lambda _: None,
    temperature: float = 0.0,
    seed: int = 0,
    engine: Engine | None = None,
) -> Generations:
    """Answer each conversation, greedily unless a temperature is given.

    With several processes, each answers its share and all of them return all answers (`share`). Batches begin with the
    longest prompts, so that the memory runs out at the start or never. If it does, the batch is halved once.

    The model is in eval mode, the tokenizer has a chat template and a pad token, and each conversation ends with a user
    message. Prompts of more than `max_prompt_tokens` lose the middle of that message. Each answer at a temperature
    above 0 is drawn from a random stream of its own, made from `seed`. `advance` is called after each batch, with its
    number of answers. Without an engine, the model's own `generate` is used.

    Raises:
        UserError: a prompt cannot be shortened enough, or the device has too little memory.
    """
    start = time.perf_counter()
    encoder = Encoder(Template(tokenizer))
    prompts = encode(encoder, conversations, max_prompt_tokens)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].ids), reverse=True)
    own = share(order, batch_size)
    config = greedy(model, tokenizer, max_new_tokens)
    engine = engine or Engine(model)
    answers: dict[int, list[int]] = {}
    halved = False
    while len(answers) < len(own):
        batch = own[len(answers) :][:batch_size]
        noise = [GumbelNoise(temperature, seed, batch)] if temperature else []
        try:
            new = engine.answer([prompts[index].ids for index in batch], config, noise)
        except torch.OutOfMemoryError:
            if halved or len(batch) == 1:
                raise UserError(
                    f"eval.batch_size={len(batch)}: the device has too little memory for prompts of "
                    f"{len(prompts[batch[0]].ids)} tokens; lower it"
                ) from None
            new = None
        if new is None:  # outside the except clause, whose error keeps the batch's tensors alive
            engine.release()
            torch.cuda.empty_cache()
            halved, batch_size = True, len(batch) // 2
            log.warning("out of memory with %d prompts per batch; continuing with %d", len(batch), batch_size)
            continue
        answers.update(zip(batch, new, strict=True))
        advance(len(new))
    answers = dict(gather(list(answers.items())))
    smallest = min(gather([batch_size]))
    decoded = [_decode(tokenizer, prompt, answers[number], config) for number, prompt in enumerate(prompts)]
    return Generations(decoded, time.perf_counter() - start, smallest)


def encode(encoder: Encoder, conversations: Sequence[Messages], most: int) -> list[Prompt]:
    """Apply the chat template, up to where the assistant's answer begins.

    Control tokens that a message spells stay text, as in training.

    A prompt of more than `most` tokens loses the middle of its last user message, because instructions are usually at
    the start or the end (and models use the middle least: "Lost in the Middle", arXiv:2307.03172). If that is not
    enough, it loses the messages before it.

    Raises:
        UserError: the rest of a prompt alone is longer than `most`.
    """
    prompts = _prompts(encoder, conversations)
    return [prompt if len(prompt.ids) <= most else _shorten(encoder, prompt, most) for prompt in prompts]


def _prompts(encoder: Encoder, conversations: Sequence[Messages]) -> list[Prompt]:
    rendered = [encoder.template.prompt(list(messages)) for messages in conversations]
    return [
        Prompt(messages, row.original(0, len(row.text)), ids, shortened=False)
        for messages, row, (ids, _) in zip(conversations, rendered, encoder.encode(rendered), strict=True)
    ]


def _shorten(encoder: Encoder, prompt: Prompt, most: int) -> Prompt:
    messages, decode = prompt.messages, encoder.template.tokenizer.decode
    last = max(index for index, message in enumerate(messages) if message["role"] == "user")
    content = encoder.encode_text(messages[last]["content"])
    keep = len(content)
    while len(prompt.ids) > most:
        keep -= len(prompt.ids) - most
        if keep <= 0 and not last:
            raise UserError(f"eval.max_prompt_tokens={most}: too few for the chat template alone; raise it")
        if keep <= 0:  # the earlier messages alone are too long
            return replace(encode(encoder, [messages[last:]], most)[0], shortened=True)
        # A cut inside a character leaves a replacement character, which is removed.
        start = decode(content[: (keep + 1) // 2]).rstrip("\ufffd")
        end = decode(content[len(content) - keep // 2 :]).lstrip("\ufffd")
        shorter = {**messages[last], "content": f"{start}{GAP}{end}"}
        (prompt,) = _prompts(encoder, [[*messages[:last], shorter, *messages[last + 1 :]]])
    return replace(prompt, shortened=True)


def greedy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> GenerationConfig:
    """Return a config in which every setting is neutral.

    `generate` fills missing settings from the model's own config, which for Llama means sampling at temperature 0.6 and
    for others a repetition penalty. Of that config, only the end-of-turn tokens are used, with those of the tokenizer
    and its chat template.
    """
    own = model.generation_config.eos_token_id
    stops = {tokenizer.eos_token_id, end_of_turn(tokenizer), *(own if isinstance(own, list) else [own])} - {None}
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


class GumbelNoise(LogitsProcessor):
    """Turns greedy decoding into sampling, with one random stream per example, so that batches do not change a draw.

    The argmax of logits / temperature + Gumbel noise is a draw from softmax(logits / temperature); see Maddison, Tarlow
    and Minka 2014, "A* Sampling", arXiv:1411.0030, section 2. The noise comes from NumPy on the CPU, so it is the same
    on every device. `examples` are those in the rows of the batch.
    """

    def __init__(self, temperature: float, seed: int, examples: Sequence[int]) -> None:
        self.temperature = temperature
        self.streams = [stream(seed, f"answer {example}") for example in examples]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:  # noqa: ARG002
        """Return noisy scores, [rows, vocabulary]; called once per token."""
        noise = [torch.from_numpy(generator.gumbel(size=scores.shape[-1])) for generator in self.streams]
        return scores.float() / self.temperature + torch.stack(noise).to(device=scores.device, dtype=torch.float32)


def _decode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, ids: list[int], config: GenerationConfig) -> Generation:
    """Truncate an answer at its end of turn and decode it."""
    stops = set(config.eos_token_id)
    end = next((position for position, token in enumerate(ids) if token in stops), None)
    kept = ids if end is None else ids[:end]
    text = tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
    return Generation(prompt, text, len(kept) + (end is not None), end is not None)
