"""The engine `vllm`, where that package is installed: a second copy of the model, in vLLM's own process.

It loads the base model from where this one came from, and of an adapter a copy that is saved for it; it takes what GPU
memory is left beside the model that is already there.
"""

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from tometune.common.errors import UserError

SHARE = 0.9
"""Of the free GPU memory."""

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Largest ranks of adapters that vLLM can be told."""


class Vllm:
    """Starts vLLM with the first batch and keeps it until `release`."""

    name = "vllm"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, longest_row: int) -> None:
        """Take a causal language model, with or without an adapter, for its place and its adapter.

        Args:
            model: what vLLM is to load again.
            tokenizer: its tokenizer.
            longest_row: tokens of a prompt and its answer, at most.
        """
        self.model, self.tokenizer, self.longest_row = model, tokenizer, longest_row
        self._llm: Any = None
        self._adapter: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def kind(self, rows: int) -> str:  # noqa: ARG002 -- all are the same
        """Return the name; see `Engine`."""
        return self.name

    def answer(
        self, prompts: Sequence[list[int]], config: GenerationConfig, noise: Sequence[LogitsProcessor]
    ) -> list[list[int]]:
        """Generate for one batch; see `Engine`."""
        if noise:
            raise UserError("eval.engine=vllm: answers greedily only; set eval.temperature=0 or eval.engine=auto")
        if self._llm is None:
            self._start()
        from vllm import SamplingParams

        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=config.max_new_tokens,
            stop_token_ids=config.eos_token_id,
            detokenize=False,
        )
        found = self._llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts], sampling, lora_request=self._adapter, use_tqdm=False
        )
        return [list(request.outputs[0].token_ids) for request in found]

    def release(self) -> None:
        """End vLLM."""
        self._llm = self._adapter = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
        torch.cuda.empty_cache()

    def _start(self) -> None:
        """Load the model again, in vLLM."""
        os.environ["VLLM_NO_USAGE_STATS"] = "1"  # nothing leaves the machine unasked
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        options: dict[str, Any] = {}
        base = self.model
        if isinstance(self.model, PeftModel):
            base = self.model.get_base_model()
            self._folder = tempfile.TemporaryDirectory(prefix="tometune-vllm-")
            self.model.save_pretrained(self._folder.name)
            self._adapter = LoRARequest("tuned", 1, self._folder.name)
            rank = max(adapter.r for adapter in self.model.peft_config.values())
            options = {"enable_lora": True, "max_lora_rank": next(size for size in RANKS if size >= rank)}
        if base.config.to_dict().get("quantization_config"):
            options["quantization"] = "bitsandbytes"
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        self._llm = LLM(
            model=base.name_or_path,
            revision=base.config._commit_hash,
            tokenizer=self.tokenizer.name_or_path,
            dtype=str(base.dtype).removeprefix("torch."),
            max_model_len=self.longest_row,
            gpu_memory_utilization=round(SHARE * free / total, 3),
            generation_config="vllm",  # not the model's own: see `greedy`
            **options,
        )
