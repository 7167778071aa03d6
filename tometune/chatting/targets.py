"""The models of a chat, a run, its base, any other model or a GGUF file: how they are found and loaded."""

import json
import logging
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from importlib import util
from pathlib import Path
from typing import Any

from tometune.chatting.conversation import End, Engine, Message, Piece, Settings
from tometune.common.errors import UserError
from tometune.common.hub import commit_of, hub_errors
from tometune.common.process import quick_imports
from tometune.config.model import ModelConfig, Weights
from tometune.config.root import Config
from tometune.models import smollm2
from tometune.models.llama_cpp import LlamaServer
from tometune.models.source import ADAPTER, as_saved
from tometune.runs.finished import as_trained, finished_record
from tometune.runs.stored import run_folder, with_command_line

log = logging.getLogger(__name__)

BASE = "base"  # the value of `against` that means the base model of the run
ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Target:
    """One of the models that answer."""

    label: str
    title: str  # the label in words, without a hash
    model: ModelConfig | None = None  # the base of the adapter, or a whole model; None for a GGUF file
    adapter: Path | None = None
    gguf: Path | None = None
    base: ModelConfig | None = None  # what `against=base` means


NEUTRAL = {"top_k": 0, "min_p": 0.0, "typical_p": 1.0, "repeat_penalty": 1.0, "presence_penalty": 0.0}
"""Values that switch off the server's other samplers, which are on by default."""


class LlamaEngine:
    """A GGUF file in llama.cpp's own server, with the chat template and the end-of-turn tokens that it carries.

    Raises:
        UserError: llama.cpp is not installed or cannot read the file.
    """

    def __init__(self, file: Path, context: int) -> None:
        if util.find_spec("xllamacpp") is None:
            raise UserError(f"{file}: needs llama.cpp; run: bash scripts/setup.sh gguf, or pip install xllamacpp")
        self.server = LlamaServer(file, context)
        self.context = int(self.server.request("GET", "/props")["default_generation_settings"]["n_ctx"])

    def count(self, messages: Sequence[Message]) -> int:
        return len(self.server.tokens(messages))

    def stream(self, messages: Sequence[Message], settings: Settings) -> Generator[Piece, None, None]:
        sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "seed": settings.seed, **NEUTRAL}
        limit = min(settings.max_new_tokens, self.context - self.count(messages))
        # The server also reports while it reads a long prompt, not only after it.
        body = {"prompt": self.server.prompt(messages), "n_predict": limit, "return_progress": True, **sampling}
        with closing(self.server.stream(body)) as events:
            for event in events:
                stop = event.get("stop_type") if event["stop"] else None
                end = stop and (End.length if stop == "limit" else End.turn)
                yield Piece(event["content"], event["tokens_predicted"], end)
                if end:
                    return
        raise UserError("llama.cpp broke off in the middle of an answer; start chat again")


def find_targets(config: Config) -> list[Target]:
    """Return the one or two models that the command line names.

    Raises:
        UserError: there is no such run or file, the run is unfinished, or its base is gone or has changed.
    """
    if config.gguf is not None and config.run is not None:
        raise UserError("gguf and run: set only one of them; to compare them, set run=… against=FILE.gguf")
    if config.gguf is not None:
        first = _gguf("gguf", config.gguf)
    elif config.run is not None:
        first = _run(config, "run", config.run, with_base=config.against == BASE)
    else:
        first = _model(config.model)
    if config.against is None:
        return [first]
    if config.against == BASE:
        if first.base is None:
            raise UserError("against=base: only a run or an adapter has a base; set run=…, or name a run in against=…")
        return [Target(f"{first.base.name} (base)", f"Base: {first.base.name}", first.base), first]
    if config.against.endswith(".gguf") or any(Path(config.against).expanduser().glob("*.gguf")):
        return [first, _gguf("against", config.against)]
    return [first, _run(config, "against", config.against)]


def load_engines(targets: Sequence[Target], cache: Path, context: int) -> list[Engine]:
    """Return one engine per target, with `context` tokens each. Targets with the same base share its weights.

    Raises:
        UserError: this machine, the hub or the files do not allow it.
    """
    bases: dict[str, Any] = {}  # a `SharedModel` per base
    engines: list[Engine] = []
    for number, target in enumerate(targets):
        log.info("loading %s", target.label)
        if target.gguf is not None:
            engines.append(LlamaEngine(target.gguf, context))
            continue
        with quick_imports():
            from tometune.chatting.transformers_engine import SharedModel, TransformersEngine
            from tometune.models.load import load_model
            from tometune.models.machine import check_machine
            from tometune.models.source import locate
            from tometune.models.tokenizer import load_tokenizer
        assert target.model is not None
        key, adapter = repr(target.model), None
        if key not in bases:
            check_machine(target.model)
            source = locate(target.model, cache)
            bases[key] = SharedModel(load_model(source), load_tokenizer(source))
        if target.adapter is not None:
            adapter = f"target{number}"
            bases[key].add_adapter(target.adapter, adapter)
        engines.append(TransformersEngine(bases[key], adapter, context))
    for engine in engines:  # the first pass prepares kernels and buffers, which would delay the first answer
        list(engine.stream([{"role": "user", "content": "Hello"}], Settings(temperature=0, max_new_tokens=2)))
    return engines


def _gguf(key: str, name: str) -> Target:
    """Return a GGUF file, or the only one in a folder (exports are folders)."""
    path = Path(name).expanduser()
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        if len(files) != 1:
            found = ", ".join(file.name for file in files) or "none"
            raise UserError(f"{key}={name}: expected a folder with one GGUF file, found {found}; name a file")
        path = files[0]
    if not path.is_file():
        raise UserError(f"{key}={name}: no such file; name a GGUF file, e.g. {key}=model-q8_0.gguf")
    return Target(path.stem, path.stem, gguf=path)


def _run(config: Config, key: str, name: str, with_base: bool = False) -> Target:
    """Return a finished run. A whole model (`lora=none`) needs its base only if that is asked for."""
    folder = run_folder(name, config.paths, key)
    record, own = finished_record(folder)
    stored = with_command_line(own, config)
    run_id, title = record["run_id"], f"Tuned: {own.model.name} on {own.data.name}, seed {own.seed}"
    base = _checked_base(f"{key}={name}", stored.model, record) if stored.lora.enabled or with_base else None
    if stored.lora.enabled:
        return Target(run_id, title, base, folder / ADAPTER, base=base)
    return Target(run_id, title, replace(as_saved(stored.model, folder), name=run_id), base=base)


def _checked_base(where: str, model: ModelConfig, record: dict[str, Any]) -> ModelConfig:
    """Return the base of a run at the revision it was trained on.

    If the command line names another base, its content is compared where that is known. Of a hub id only the shapes are
    compared, when the adapter is loaded.
    """
    if _missing(model):
        raise UserError(f"{where}: its base model {model.id} is gone; put it back, or name it with model.id=…")
    trained = record["model"]
    local = model.weights is Weights.random or Path(model.id).expanduser().is_dir()
    known_by_content = str(trained["revision"]).startswith(("folder-", "tiny-"))
    if model.id != trained["id"] and not (local and known_by_content):
        log.warning("%s: trained on %s, now used with %s", where, trained["id"], model.id)
        return model
    try:
        return as_trained(model, record)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _missing(model: ModelConfig) -> bool:
    """Whether the id can only be a folder, and is not there."""
    local = model.weights is Weights.pretrained and (model.id.startswith(("/", "~", ".")) or model.id.count("/") > 1)
    return local and not Path(model.id).expanduser().is_dir()


def _model(model: ModelConfig) -> Target:
    """Return the model or adapter that `model.id` names."""
    if _missing(model):
        raise UserError(f"model.id={model.id}: no such folder; name one, or a hub id (user/name)")
    whole, folder = Target(model.name, model.name, model), Path(model.id).expanduser()
    if model.weights is Weights.random or model.id == smollm2.HUB_ID or (folder / "config.json").exists():
        return whole
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        files = [ADAPTER_CONFIG, "adapter_model.safetensors"]
        with suppress(UserError), hub_errors("model.id", model.id):  # loading reports it if there is no such repository
            commit = commit_of("model.id", model.id, model.revision, "model")
            folder = Path(snapshot_download(model.id, revision=commit, allow_patterns=files))
    if not (folder / ADAPTER_CONFIG).is_file():
        return whole
    adapter: dict[str, Any] = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    if not (name := adapter.get("base_model_name_or_path")):
        raise UserError(f"model.id={model.id}: its {ADAPTER_CONFIG} names no base; merge it, or name a run")
    revision = adapter.get("revision") or "main"
    base = replace(model, id=str(name), name=f"{model.id} on {name}", revision=revision)
    if _missing(base):
        raise UserError(f"model.id={model.id}: its base model {name} is gone; put it back, or merge the adapter")
    return Target(model.id, f"Tuned: {model.id}", base, folder, base=base)
