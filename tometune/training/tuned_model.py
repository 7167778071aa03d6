"""The tuned model of a run: trained in this process or in Unsloth's, or loaded if an earlier attempt trained it."""

from typing import Any

from tometune.models.adapter import add_adapter
from tometune.models.load import load_to_train, load_tuned
from tometune.models.machine import free_memory
from tometune.runs.inputs import RunInputs
from tometune.runs.run import Run
from tometune.training.inputs import TrainingInputs
from tometune.training.metrics import OnLog
from tometune.training.sft import fit
from tometune.training.unsloth_process import UnslothProcess


def tuned_model(run: Run, inputs: RunInputs, model: Any, on_log: OnLog, process: UnslothProcess | None) -> Any:
    """Train, unless an interrupted run already finished training; record the result and return the tuned model.

    `model` is the base model, which gets the adapter. It is None if another one is loaded for the training: in
    Unsloth's `process`, which then trains, or every weight in float32 (`lora=none`).

    Raises:
        UserError: the model or the machine is not suitable, or the loss is not finite.
    """
    config = inputs.config
    if run.record["train"] is not None:
        return load_tuned(model, inputs.model_source, config.lora, run.folder)
    training = TrainingInputs(
        source=inputs.model_source,
        tokens=inputs.tokens,
        trainer=config.trainer,
        lora=config.lora,
        seeds=config.seeds,
        folder=run.folder.absolute(),
        cache=inputs.cache,
    )
    if process is not None:
        result = process.fit(training, on_log)
    elif config.lora.enabled:
        model = add_adapter(model, config.lora, config.seeds.adapter)
        result = fit(model, inputs.tokenizer, training, on_log)
    else:
        result = fit(load_to_train(inputs.model_source), inputs.tokenizer, training, on_log)
        free_memory()
    run.update(train=result)
    run.save()
    return load_tuned(None, inputs.model_source, config.lora, run.folder) if model is None else model
