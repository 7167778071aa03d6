"""The model card: what the model is, how it was made and checked, what its licences ask, how to load it."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tometune.common.files import write_text
from tometune.exporting.licences import data_sources, licence_for, licence_texts
from tometune.exporting.loading import ways_to_load
from tometune.models import smollm2
from tometune.runs.finished import Finished, is_local

LIBRARY = {"adapter": "peft", "merged_16bit": "transformers", "gguf": "gguf"}
"""The hub's name of what loads a format."""


def write_card(
    finished: Finished, kind: str, gates: Sequence[tuple[str, Mapping[str, Any]]], folder: Path, repository: str | None
) -> None:
    """Write README.md.

    Args:
        finished: the run.
        kind: the format.
        gates: name and gate.json of each export in the folder: one, or one a quant.
        folder: gets the files.
        repository: where it is published; None stands for a place of the reader's.
    """
    write_text(folder / "README.md", card(finished, kind, gates, repository or f"user/{finished.record['run_id']}"))


def write_licence(finished: Finished, folder: Path) -> None:
    """Write the texts that the base's licence wants to go along: its own files, and NOTICE where it asks for one."""
    for text in licence_texts(finished):
        shutil.copyfile(text, folder / text.name)
    notice = licence_for(finished).notice
    if notice is not None:
        write_text(folder / "NOTICE", notice + "\n")


def held_against(gate: Mapping[str, Any]) -> str:
    """Return what an export was compared with, in words."""
    model, dtype = gate["reference"]["model"], gate["reference"]["dtype"]
    tuned = gate["reference"].get("tuned", "the adapter")
    told = f"{tuned} as trained" if model == "as trained" else f"{tuned} on the base in 16 bits"
    apart = gate["checks"].get("logits", {}).get("from_4_bits")
    if apart is not None:
        told += f", which is {apart:.2g} nats a token from the adapter on the 4-bit base as trained"
    elif model != "as trained":
        told += " (not on the 4-bit base as trained, which the machine could not hold)"
    return f"{told}; logits in {dtype}"


def card(finished: Finished, kind: str, gates: Sequence[tuple[str, Mapping[str, Any]]], repository: str) -> str:
    """Return the text of the card."""
    licence, sources = licence_for(finished), data_sources(finished)
    failed = [gate for _, gate in gates if not gate["passed"]]
    record, config = finished.record, finished.config
    on_hub = not is_local(finished.model)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 -- Markdown, not HTML
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("card.md.jinja").render(
        metadata=yaml.safe_dump(_metadata(finished, kind, licence.tag, sources), sort_keys=False).strip(),
        title=repository.partition("/")[2],
        kind=kind,
        run_id=record["run_id"],
        gate=failed[0] if failed else gates[0][1],
        gates=gates,
        quants=[name.rpartition("-")[2].upper() for name, _ in gates],
        built_with=licence.built_with,
        held=list(dict.fromkeys(held_against(gate) for _, gate in gates)),
        base=finished.base_name,
        base_url=f"https://huggingface.co/{finished.base_name}" if on_hub else None,
        merge_base=finished.merged_into if finished.base.id != finished.model.id and kind != "adapter" else None,
        note=_note(finished),
        loading=ways_to_load(kind, repository, finished, [name for name, _ in gates]),
        record=record,
        data=record["data"],
        composition=_composition(finished),
        lora=config.lora,
        tuned="adapter" if config.lora.enabled else "run",
        trainer=config.trainer,
        date=finished.model.date_string,
        versions=", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        scores=_scores(record),
        limited=any(stage.get("limited") for stage in record["eval"].values()),
        table=_table(finished),
        obligations=licence.obligations,
        sources=sources,
    )


def _metadata(finished: Finished, kind: str, licence: str, sources: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the card's YAML: what the hub files the model under."""
    metadata: dict[str, Any] = {"library_name": LIBRARY[kind], "pipeline_tag": "text-generation", "license": licence}
    if licence == "other":
        metadata["license_name"] = "that-of-the-base"
        metadata["license_link"] = f"https://huggingface.co/{finished.base_name}"
    base = finished.model if kind == "adapter" else finished.base
    if not is_local(base):
        metadata["base_model"] = base.id
        metadata["base_model_relation"] = {"adapter": "adapter", "merged_16bit": "finetune"}.get(kind, "quantized")
    how = "lora" if finished.config.lora.enabled else "full-fine-tuning"
    datasets = [source["name"] for source in sources if source["hub"]]
    return metadata | ({"datasets": datasets} if datasets else {}) | {"tags": ["tometune", how, "sft"]}


def _note(finished: Finished) -> str | None:
    """Return what users of the base have to know."""
    if str(finished.record["model"]["revision"]).startswith(f"{smollm2.PACKAGE}=="):
        return (
            f"Trained on the weights in the package `{smollm2.PACKAGE}`: {finished.model.id} in 4 bits (Q4_1)."
            " The merged model and the GGUF hold them; the adapter on the original weights answers "
            "somewhat differently."
            if finished.whole is None
            else f"Trained from the weights in the package `{smollm2.PACKAGE}`: {finished.model.id} in 4 bits (Q4_1)."
        )
    return None


def _composition(finished: Finished) -> list[tuple[str, int]]:
    """Return the rows of each source of the mix."""
    path = finished.folder / "mix.json"
    mix = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return list(mix.get("sources", {}).items())


def _scores(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row a task, and one for their mean; scores as text."""
    base, tuned = record["eval"].get("base"), record["eval"]["tuned"]
    rows = []
    for task, after in [*tuned["tasks"].items(), ("mean of tasks", tuned)]:
        before = (base["tasks"].get(task) if task in tuned["tasks"] else base) if base else None
        texts = {
            stage: {
                name: f"{scores[name]:.3f}" if scores and name in scores else "–"
                for name in ("rouge1", "rouge2", "rougeL")
            }
            for stage, scores in (("base", before), ("tuned", after))
        }
        rows.append({"task": task, "examples": after.get("examples", ""), **texts})
    return rows


def _table(finished: Finished) -> dict[str, Any] | None:
    """Return the table of the sweep that the run belongs to, if there is one."""
    path = finished.folder.parent / "table.json"
    if not path.exists():
        return None
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return table
