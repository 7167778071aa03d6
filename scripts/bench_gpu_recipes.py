"""The recipes that bench_gpu.py compares with: Unsloth's notebook, TRL with PEFT, with Liger, and at their best."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Result = dict[str, Any]

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Recipe:
    """What differs from one recipe to the next."""

    unsloth: bool = False
    liger: bool = False
    best: bool = False
    """Batch 8 without checkpointing, packed; else batch 2 × 4 with checkpointing, not packed."""


RECIPES = {
    "notebook_unsloth": Recipe(unsloth=True),
    "trl_peft": Recipe(),
    "trl_liger": Recipe(liger=True),
    "unsloth_best": Recipe(unsloth=True, best=True),
    "trl_peft_best": Recipe(best=True),
    "trl_liger_best": Recipe(liger=True, best=True),
}


def train(name: str, settings: Result) -> Result:
    """Train by a recipe and return each step's real tokens/s, the peak of memory and the seconds to the first step."""
    recipe = RECIPES[name]
    if recipe.unsloth:
        import unsloth  # noqa: F401 -- before trl, transformers and peft, which it changes
    import torch
    from bench_gpu_model import read_rows
    from datasets import Dataset
    from trl import SFTTrainer

    model, tokenizer, lora = (_unsloth_model if recipe.unsloth else _peft_model)(recipe, settings)
    trainer = SFTTrainer(
        model=model,
        args=_arguments(recipe, settings),
        train_dataset=Dataset.from_dict({"text": [row["text"] for row in read_rows(settings)]}),
        processing_class=tokenizer,
        peft_config=lora,
    )
    watch = _Watch(trainer, tokenizer.pad_token_id)
    trainer.train()
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    came = {key: getattr(trainer.args, key, None) for key in ("packing", "padding_free", "loss_type", "optim")}
    (*_, last) = (each for each in trainer.state.log_history if "grad_norm" in each)
    learned = {"loss": float(last["loss"]), "grad_norm": float(last["grad_norm"])}
    result = {"steps": watch.steps, "seconds_to_first_step": watch.first, "peak_memory_gb": peak / 1e9, **learned}
    return {**result, "settings": came}  # as the libraries left them: Unsloth can take packing back


class _Watch:
    """Times steps from end to end, with the GPU's work done at each end, and counts the tokens that are no padding."""

    def __init__(self, trainer: Any, pad: int) -> None:
        from transformers import TrainerCallback

        self.steps: list[Result] = []
        self.first = 0.0
        self._pad, self._padded, self._since = pad, 0, 0.0
        self._real: list[Any] = []
        inner, ended = trainer.training_step, self._ended

        def training_step(model: Any, inputs: Any, *arguments: Any, **keywords: Any) -> Any:
            self._count(inputs)
            return inner(model, inputs, *arguments, **keywords)

        class Ends(TrainerCallback):
            """Tells of the end of each step."""

            def on_step_end(self, *_: Any, **__: Any) -> None:
                """Take the time."""
                ended()

        trainer.training_step = training_step  # on the instance: Unsloth replaces the class's
        trainer.add_callback(Ends())

    def _count(self, inputs: Any) -> None:
        """Count a batch; the sums stay on their device until the step's end."""
        ids, mask, packed = inputs["input_ids"], inputs.get("attention_mask"), inputs.get("packed_seq_lengths")
        if mask is not None and mask.dim() == 2:
            self._real.append(mask.sum())
        elif packed is not None:  # Unsloth's
            self._real.append(packed.sum())
        elif "position_ids" in inputs:  # TRL's packs, end to end
            self._real.append(ids.numel())
        else:
            self._real.append((ids != self._pad).sum())
        self._padded += inputs["input_ids"].numel()

    def _ended(self) -> None:
        """Record the duration of a step."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.time()
        self.first = self.first or now - float(os.environ["BENCH_STARTED"])
        seconds = now - (self._since or float(os.environ["BENCH_STARTED"]))  # the first one is warm-up in any case
        real = float(sum(int(count) for count in self._real))
        rates = {"tokens_per_second": real / seconds, "padded_tokens_per_second": self._padded / seconds}
        self.steps.append({"tokens": real, "seconds": seconds, **rates})
        self._real, self._padded, self._since = [], 0, now


def _unsloth_model(recipe: Recipe, settings: Result) -> tuple[Any, Any, Any]:
    """Return Unsloth's model with its adapter, as in the FineTome notebook."""
    from unsloth import FastLanguageModel

    length = settings["max_length"]
    model, tokenizer = FastLanguageModel.from_pretrained(
        settings["model"], max_seq_length=length, dtype=None, load_in_4bit=settings["storage"] == "nf4"
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=16,
        target_modules=PROJECTIONS,
        lora_alpha=16,
        lora_dropout=0,
        bias="none",
        use_gradient_checkpointing=False if recipe.best else "unsloth",
        random_state=3407,
        use_rslora=False,
        loftq_config=None,
    )
    return model, tokenizer, None


def _peft_model(_: Recipe, settings: Result) -> tuple[Any, Any, Any]:
    """Return transformers' model and the adapter that TRL adds; on a CPU in 32 bits."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    loading: Result = {"dtype": torch.float32}
    if torch.cuda.is_available():
        four_bits = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        loading = {"dtype": torch.bfloat16, "device_map": {"": 0}}
        loading |= {"quantization_config": four_bits} if settings["storage"] == "nf4" else {}
    model = AutoModelForCausalLM.from_pretrained(settings["model"], attn_implementation="sdpa", **loading)
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=16, lora_dropout=0, target_modules=PROJECTIONS)
    return model, AutoTokenizer.from_pretrained(settings["model"]), lora


def _arguments(recipe: Recipe, settings: Result) -> Any:
    """Return the trainer's arguments; each is passed, since Unsloth changes the defaults."""
    import torch
    from trl import SFTConfig

    gpu, again = torch.cuda.is_available(), not recipe.best
    # padding_free stays unset: Unsloth then decides by itself, as in the notebook, and TRL does not use it.
    more = {} if recipe.unsloth else {"padding_free": False}
    return SFTConfig(
        output_dir=str(Path(settings["folder"]) / "trainer"),
        dataset_text_field="text",
        max_length=settings["max_length"],
        packing=recipe.best,
        packing_strategy="bfd",
        per_device_train_batch_size=8 if recipe.best else 2,
        gradient_accumulation_steps=1 if recipe.best else 4,
        gradient_checkpointing=again,
        gradient_checkpointing_kwargs={"use_reentrant": False} if again and not recipe.unsloth else None,
        max_steps=settings["warmup"] + settings["steps"],
        warmup_steps=5,
        learning_rate=2e-4,
        lr_scheduler_type="linear",
        optim="adamw_8bit" if gpu else "adamw_torch",
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        weight_decay=0.01,
        max_grad_norm=1.0,
        bf16=gpu,
        fp16=False,
        use_cpu=not gpu,
        seed=3407,
        data_seed=3407,
        # The same rows in the same order; but packing puts the longest first, so packs are drawn, as tometune's are.
        train_sampling_strategy="random" if recipe.best else "sequential",
        loss_type="nll" if recipe.liger or recipe.unsloth else "chunked_nll",  # TRL's own defaults
        use_liger_kernel=recipe.liger,
        dataset_num_proc=None,
        dataloader_num_workers=0,
        dataloader_pin_memory=gpu,
        logging_strategy="steps",
        logging_steps=1,
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        push_to_hub=False,
        **more,
    )
