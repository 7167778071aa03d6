"""The engines that users load an export with, each behind the same four questions."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tometune.config.model import ModelConfig
from tometune.exporting.prompts import Conversation
from tometune.exporting.reference import Example, Fixed, render
from tometune.exporting.torch_engine import answer, log_probabilities, text_of
from tometune.models.load import load_model
from tometune.models.source import locate


class EngineError(RuntimeError):
    """The engine could not load the export, or broke on it."""


class Engine(Protocol):
    """An export, loaded by what its users will use."""

    name: str
    """Of the library, with its version."""

    def rendered(self, messages: Conversation) -> list[int]:
        """Return the tokens the engine makes of a conversation by the export's own template."""

    def log_probabilities(self, fixed: Sequence[Fixed]) -> list[np.ndarray]:
        """Return, for each fixed prompt, float32 [answer tokens, vocabulary] on the adapter's own answer."""

    def greedy(self, fixed: Sequence[Fixed], max_new_tokens: int) -> list[str]:
        """Return the export's own greedy answers to the fixed prompts."""

    def answers(self, examples: Sequence[Example]) -> list[str]:
        """Return the greedy answers to the examples."""


@dataclass(frozen=True)
class Answering:
    """How the run's examples were answered when it was scored."""

    dtype: torch.dtype
    batch_size: int


class TorchEngine:
    """PEFT or transformers, on a folder that was just written."""

    def __init__(self, library: str, model: Any, tokenizer: Any, answering: Answering) -> None:
        """Take the export, held in float32 where that fits, and how the run's examples were answered."""
        self.name = f"{library} {metadata.version(library)}"
        self.model, self.tokenizer, self.answering = model.eval(), tokenizer, answering

    @classmethod
    def of_adapter(cls, folder: Path, base: ModelConfig, cache: Path, answering: Answering) -> "TorchEngine":
        """Load an exported adapter onto its base with PEFT."""
        model = peft.PeftModel.from_pretrained(load_model(locate(base, cache)), folder, is_trainable=False)
        return cls("peft", model, AutoTokenizer.from_pretrained(folder), answering)

    @classmethod
    def of_merged(cls, folder: Path, dtype: torch.dtype, device: torch.device, answering: Answering) -> "TorchEngine":
        """Load a merged model with transformers; `dtype` is what it computes in, its files hold 16 bits."""
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True).to(device)
        return cls("transformers", model, AutoTokenizer.from_pretrained(folder), answering)

    def rendered(self, messages: Conversation) -> list[int]:
        """See `Engine`."""
        return render(self.tokenizer, messages) or []

    def log_probabilities(self, fixed: Sequence[Fixed]) -> list[np.ndarray]:
        """See `Engine`."""
        return [log_probabilities(self.model, prompt.ids, prompt.answer) for prompt in fixed]

    def greedy(self, fixed: Sequence[Fixed], max_new_tokens: int) -> list[str]:
        """See `Engine`."""
        found = answer(self.model, self.tokenizer, [prompt.ids for prompt in fixed], max_new_tokens, len(fixed))
        return [text_of(self.tokenizer, ids) for ids in found]

    def answers(self, examples: Sequence[Example]) -> list[str]:
        """See `Engine`; in the run's own arithmetic, from here on."""
        for name, parameter in self.model.named_parameters():
            if parameter.dtype is torch.float32 and "lora_" not in name:
                parameter.data = parameter.data.to(self.answering.dtype)
        groups: dict[int, list[int]] = defaultdict(list)
        for index, example in enumerate(examples):
            groups[example.max_new_tokens].append(index)
        found: dict[int, str] = {}
        for new, indices in groups.items():
            prompts = [examples[index].ids for index in indices]
            ids = answer(self.model, self.tokenizer, prompts, new, self.answering.batch_size)
            found |= {index: text_of(self.tokenizer, one) for index, one in zip(indices, ids, strict=True)}
        return [found[index] for index in range(len(examples))]
