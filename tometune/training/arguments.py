"""The arguments of TRL's trainer: all that matter, by name, since backends change the defaults."""

from pathlib import Path

import torch

from tometune.config.root import Config
from tometune.training.steps import Step
from tometune.training.trainer import Arguments


def arguments(
    config: Config,
    dtype: torch.dtype,
    checkpoints: Path,
    step: Step,
    checkpointing: bool,
    unsloth: bool = False,
) -> Arguments:
    """Return TRL's arguments.

    Args:
        config: `trainer`, and `seeds.order` and `seeds.adapter`.
        dtype: of the arithmetic.
        checkpoints: where they are saved.
        step: what a step is made of, and in how many parts.
        checkpointing: whether activations are computed twice.
        unsloth: whether the model is Unsloth's, which has a fused loss of its own.
    """
    trainer = config.trainer
    return Arguments(
        output_dir=str(checkpoints),
        learning_rate=trainer.learning_rate,
        lr_scheduler_type=trainer.lr_scheduler_type,
        warmup_steps=trainer.warmup_steps,
        weight_decay=trainer.weight_decay,
        optim=trainer.optim,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        max_grad_norm=trainer.max_grad_norm,
        num_train_epochs=trainer.num_train_epochs,
        max_steps=trainer.max_steps or -1,
        per_device_train_batch_size=step.micro_batch,
        gradient_accumulation_steps=step.accumulation,
        gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
        bf16=dtype is torch.bfloat16,
        fp16=dtype is torch.float16,
        use_cpu=not torch.cuda.is_available(),
        seed=config.seeds.adapter,
        data_seed=config.seeds.order,
        train_sampling_strategy="random",
        max_length=trainer.max_length,
        packing=False,  # the rows are packed already, and fit() gives the collator that keeps them apart:
        padding_free=False,  # TRL takes that collator only where it is told of neither
        loss_type="nll" if unsloth else trainer.loss_type,
        use_liger_kernel=False,
        label_smoothing_factor=0.0,
        neftune_noise_alpha=None,
        average_tokens_across_devices=True,
        auto_find_batch_size=False,
        completion_only_loss=False,
        assistant_only_loss=False,  # the labels are made and checked by tometune.data.tokens
        dataset_kwargs={"skip_prepare_dataset": True},
        eval_packing=False,
        activation_offloading=False,
        remove_unused_columns=False,
        dataloader_num_workers=trainer.dataloader_num_workers,
        dataloader_drop_last=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        # Batches go to the GPU while it works; a copy that waits for it leaves it idle afterwards.
        accelerator_config={"non_blocking": torch.cuda.is_available()},
        logging_strategy="steps",
        logging_steps=trainer.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="no",
        save_strategy="steps",
        save_steps=trainer.save_steps,
        save_total_limit=trainer.save_total_limit,
        report_to="none",
        disable_tqdm=True,
        push_to_hub=False,
    )
