"""Names that other programs give to our settings, and the arguments that set them here.

They come from transformers, TRL, PEFT, Unsloth, axolotl, LLaMA-Factory, nanoGPT and from habit.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tometune.config.root import Config, setting_keys

RENAMED = {
    "data.base.id={} data.rows=N": "dataset dataset_name dataset_id datasets train_dataset",
    "data=mine data.path={}": "dataset_path train_file train_path data_files data_path",
    "data.rows={}": "max_samples num_samples n_samples max_train_samples train_samples",
    "eval.batch_size={}": "eval_batch_size per_device_eval_batch_size",
    "eval.limit={}": "max_eval_samples eval_samples",
    "+eval/task@eval.tasks.mine=jsonl eval.tasks.mine.path={}": "eval_file eval_dataset test_file test_dataset",
    "format={}": "save_method",
    "lora.lora_alpha={}": "alpha adapter_alpha",
    "lora.lora_dropout={}": "dropout adapter_dropout",
    "lora.r={}": "rank lora_r lora_rank adapter_rank",
    "lora.target_modules={}": "lora_target lora_target_modules lora_modules",
    "model.attn_implementation={}": "attn attention attn_impl",
    "model.id={}": "base_model model_id model_name model_name_or_path model_path pretrained checkpoint",
    "model.precision={}": "dtype torch_dtype mixed_precision",
    "paths.cache={}": "cache_dir",
    "paths.outputs={}": "out_dir output output_dir output_path save_dir save_path",
    "push_to={}": "hub_model_id hub_repo repo_id",
    "quant={}": "quantization_method quant_method gguf_type",
    "seed={}": "random_seed rng_seed random_state manual_seed",
    "seeds.data={}": "data_seed",
    "tracking.project={}": "wandb_project project_name",
    "tracking={}": "report_to logger log_with",
    "trainer.conversations_per_step={}": "batch_size train_batch_size global_batch_size total_batch_size bs",
    "trainer.dataloader_num_workers={}": "num_workers",
    "trainer.eval_steps={}": "eval_interval eval_every",
    "trainer.gradient_checkpointing={}": "use_gradient_checkpointing grad_checkpointing activation_checkpointing",
    "trainer.learning_rate={}": "lr base_lr max_lr peak_lr",
    "trainer.logging_steps={}": "log_interval log_every log_steps logging_interval",
    "trainer.lr_scheduler_type={}": "lr_scheduler lr_schedule scheduler schedule",
    "trainer.max_grad_norm={}": "grad_clip clip_grad_norm gradient_clipping gradient_clip_val max_norm",
    "trainer.max_length={}": "max_seq_length max_seq_len seq_len sequence_len cutoff_len block_size model_max_length",
    "trainer.max_steps={}": "steps num_steps train_steps max_train_steps max_iters iters",
    "trainer.micro_batch={}": "micro_batch_size per_device_train_batch_size",
    "trainer.num_train_epochs={}": "epoch epochs num_epochs n_epochs max_epochs",
    "trainer.optim={}": "optimizer optimiser",
    "trainer.packing={}": "sample_packing pack",
    "trainer.save_steps={}": "save_interval save_every checkpoint_every",
    "trainer.warmup_steps={}": "warmup warmup_ratio warmup_iters",
    "trainer.weight_decay={}": "wd",
}
"""Arguments with the value that was given, and other names of that setting."""

VALUES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "unsloth": "auto"}
"""Values of `model.precision` and `trainer.gradient_checkpointing` elsewhere."""

FIXED = {
    "lora=dora": "use_dora dora",
    "lora=none": "full full_finetune full_finetuning full_ft no_lora",
    "lora=rslora": "use_rslora rslora",
    "model.attn_implementation=flash_attention_2": "use_flash_attention_2 flash_attn flash_attention fa2",
    "model.backend=unsloth": "use_unsloth unsloth",
    "model.precision=bf16": "bf16 bfloat16",
    "model.precision=fp16": "fp16 float16 half",
    "model.quantization=nf4": "4bit 4bits int4 nf4 qlora load_in_4bit bnb_4bit",
    "tracking=wandb": "use_wandb wandb",
    "trainer=cpu": "use_cpu no_cuda",
    "trainer=h200": "h100 a100 a100_80gb b200",
    "trainer=rtx24gb": "rtx4090 4090 rtx3090 3090 rtx5090 5090 l4 a10 a10g a5000 24gb",
    "trainer=t4": "colab tesla_t4 16gb",
}
"""Arguments, and names that stand for them alone, as a switch (`load_in_4bit=true`) or as a value (`gpu=rtx4090`)."""

ADVICE = {
    "leave it out; tokenising uses all cores": "dataset_num_proc preprocessing_num_workers",
    "set trainer.eval_steps to the steps between two of them": "evals_per_epoch",
    "set trainer.conversations_per_step to all conversations of a step": "gradient_accumulation_steps grad_accum",
    "leave it out; the loss covers the answers only": (
        "train_on_inputs assistant_only_loss completion_only_loss train_on_responses_only"
    ),
    "leave it out; the model's own template is used": "chat_template",
    "leave it out; the same command resumes by itself": "resume resume_from_checkpoint",
}
"""What to do instead, and names of what needs no setting here, or another kind of one."""

TABLES = (RENAMED, FIXED, ADVICE)
NAMES = {name: answer for table in TABLES for answer, names in table.items() for name in names.split()}
FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")  # a dataset that is no hub id

KINDS = ("trainer", "lora", "model", "tracking", "gpu", "device", "hardware", "quantization", "finetuning_type", "peft")
"""Keys, of ours and of others, whose value can be a name of `FIXED`."""


def answers(arguments: Sequence[str], extra_folder: Path | None = None) -> Iterator[str]:
    """Yield a problem, with the arguments to write instead, for each argument that uses another program's name.

    Keys of Hydra, and those that are names in the user's data, are left alone.
    """
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key.startswith("hydra") or any(mark in key for mark in ("@", "weights.", "caps.", "columns.")):
            continue
        name, value = _plain(key), value.strip("'\"")
        ours, fixed = NAMES.get(name, ""), NAMES.get(_plain(value), "")
        if ours.startswith("data.base.id=") and value.endswith(FILES):
            ours = NAMES["data_path"]
        if key.lstrip("+~") in (setting_keys() if ours else Config.__dataclass_fields__):  # e.g. eval.batch_size
            ours = ""
        elif not ours and "." not in key:  # our own name without its group: learning_rate
            found = [each for each in setting_keys() if each.endswith(f".{key}")]
            ours = f"{found[0]}={{}}" if len(found) == 1 else ""
        if ours in ADVICE:
            yield f"{argument}: no such key; {ours}"
        elif "{}" in ours or (ours in FIXED and (not equals or value.lower() in ("true", "1", "yes"))):
            yield f"{argument}: no such key; write {ours.format(VALUES.get(value.lower(), value or '…'))}"
        elif fixed in FIXED and fixed != argument and (key in KINDS or fixed.startswith(f"{key}=")):
            own = extra_folder is not None and (extra_folder / key / f"{value}.yaml").exists()
            yield from [] if own else [f"{argument}: no such option; write {fixed}"]


def keys_of(name: str) -> list[str]:
    """Return our keys for a name; none if it is in no table."""
    return [word.partition("=")[0] for word in NAMES.get(_plain(name), "").split() if "=" in word]


def _plain(name: str) -> str:
    return name.strip("+~'\"").rpartition(".")[2].replace("-", "_").lower()
