"""The tuned model of a run: trained in this process or in Unsloth's, or loaded if an earlier attempt trained it."""

from dataclasses import asdict
from typing import Any

from tometune.common.imports import quick_imports
from tometune.runs.inputs import RunInputs
from tometune.runs.run import Run
from tometune.training.metrics import OnLog
from tometune.training.unsloth_process import Apart


def tuned_model(run: Run, inputs: RunInputs, model: Any, on_log: OnLog, process: Apart | None) -> Any:
    """Train, unless an interrupted run already finished training; record the result and return the tuned model.

    Args:
        run: its folder gets checkpoints, metrics and the adapter or the whole model.
        inputs: of the run.
        model: the base model, which gets the adapter. It is freed first where another model is trained: in Unsloth's
            process, or every weight in float32 (`lora=none`).
        on_log: takes the metrics of each logging step.
        process: Unsloth's process, which trains; None trains here.

    Raises:
        UserError: the model or the machine does not allow it, or the loss is no longer a number.
    """
    with quick_imports():
        from tometune.models.adapter import add_adapter
        from tometune.models.full import load_to_train, tuned
        from tometune.models.load import free_memory
        from tometune.training.sft import fit

    config = inputs.config
    trained = run.record["train"] is not None
    if not config.lora.enabled or (process is not None and not trained):
        model = None
        free_memory()
    if not trained and process is not None:
        run.update(train=process.fit(run.folder, on_log))
        run.save()
    elif not trained:
        if config.lora.enabled:
            model = add_adapter(model, config.lora, config.seeds.adapter)
        learner = model if config.lora.enabled else load_to_train(inputs.model)
        result = fit(learner, inputs.tokenizer, inputs.tokens, config, run.folder, on_log, inputs.cache)
        run.update(train=asdict(result))
        run.save()
        if config.lora.enabled:
            return model
        del learner
        free_memory()
    return tuned(model, inputs.model, config.lora, run.folder)
