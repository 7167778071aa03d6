"""The engines that users load an export with, each behind the same four questions."""

from collections import defaultdict
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import peft
from transformers import AutoModelForCausalLM, AutoTokenizer

from tometune.config.model import ModelConfig
from tometune.exporting.prompts import Conversation
from tometune.exporting.reference import Example, Fixed, render
from tometune.exporting.torch_engine import answer, log_probabilities, text_of
from tometune.models.load import load_model


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


class TorchEngine:
    """PEFT or transformers, on a folder that was just written."""

    def __init__(self, library: str, model: Any, tokenizer: Any, batch_size: int) -> None:
        self.name = f"{library} {metadata.version(library)}"
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size

    @classmethod
    def of_adapter(cls, folder: Path, base: ModelConfig, cache: Path, batch_size: int) -> "TorchEngine":
        """Load an exported adapter onto its base with PEFT."""
        model = peft.PeftModel.from_pretrained(load_model(base, cache), folder, is_trainable=False)
        return cls("peft", model, AutoTokenizer.from_pretrained(folder), batch_size)

    @classmethod
    def of_merged(cls, folder: Path, dtype: Any, device: Any, batch_size: int) -> "TorchEngine":
        """Load a merged model with transformers; `dtype` is what it computes in, its files hold 16 bits."""
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True).to(device)
        return cls("transformers", model, AutoTokenizer.from_pretrained(folder), batch_size)

    def rendered(self, messages: Conversation) -> list[int]:
        """See `Engine`."""
        return render(self.tokenizer, messages) or []

    def log_probabilities(self, fixed: Sequence[Fixed]) -> list[np.ndarray]:
        """See `Engine`."""
        return [log_probabilities(self.model, prompt.ids, prompt.answer) for prompt in fixed]

    def greedy(self, fixed: Sequence[Fixed], max_new_tokens: int) -> list[str]:
        """See `Engine`."""
        found = answer(self.model, self.tokenizer, [prompt.ids for prompt in fixed], max_new_tokens, self.batch_size)
        return [text_of(self.tokenizer, ids) for ids in found]

    def answers(self, examples: Sequence[Example]) -> list[str]:
        """See `Engine`."""
        groups: dict[int, list[int]] = defaultdict(list)
        for index, example in enumerate(examples):
            groups[example.max_new_tokens].append(index)
        found: dict[int, str] = {}
        for new, indices in groups.items():
            prompts = [examples[index].ids for index in indices]
            ids = answer(self.model, self.tokenizer, prompts, new, self.batch_size)
            found |= {index: text_of(self.tokenizer, one) for index, one in zip(indices, ids, strict=True)}
        return [found[index] for index in range(len(examples))]
