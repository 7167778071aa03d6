"""What travels with every export: tokenizer and chat template, generation config, run.json."""

from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from tometune.common.files import write_json
from tometune.runs.finished import Finished, is_local

LEFT_OUT = ("tracking", "error")
"""Keys of run.json that name folders and accounts of the machine that trained."""


def save_together(
    finished: Finished, tokenizer: PreTrainedTokenizerBase, stops: GenerationConfig, folder: Path
) -> None:
    """Write tokenizer (the date in its template pinned), generation config and run.json into an export's folder."""
    tokenizer.save_pretrained(folder)
    stops.save_pretrained(folder)
    write_json(folder / "run.json", public(finished))


def generation_config(model: Any, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Return the model's own generation config, ending a turn where the template does."""
    config = GenerationConfig.from_dict(model.generation_config.to_dict())
    own = config.eos_token_id
    stops = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    config.eos_token_id = stops.pop() if len(stops) == 1 else sorted(stops)
    config.pad_token_id, config.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
    return config


def public(finished: Finished) -> dict[str, Any]:
    """Return run.json without what is only of use, or only of concern, where the run was made."""
    record = {name: value for name, value in finished.record.items() if name not in LEFT_OUT}
    if is_local(finished.model):
        record["model"] = {**record["model"], "id": finished.base_name}
    return record
