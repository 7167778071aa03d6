"""The export `adapter`: the LoRA weights as the run left them, naming a base that others can load."""

import json
import shutil
from pathlib import Path

from tometune.common.files import write_json
from tometune.runs.finished import Finished


def write_adapter(finished: Finished, folder: Path) -> None:
    """Copy the adapter's weights, and its config with the base's hub id in the place of a path of this machine."""
    shutil.copyfile(finished.adapter / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    config = json.loads((finished.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    revision = finished.model.revision if finished.base_name == finished.model.id else None
    config |= {"base_model_name_or_path": finished.base_name, "revision": revision if revision != "main" else None}
    write_json(folder / "adapter_config.json", config)
