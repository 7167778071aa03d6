"""The model card: what the model is, how it was made and checked, its licences, and how to load it."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tometune.common.files import write_text
from tometune.exporting.licences import licence_for, licence_texts
from tometune.models import smollm2
from tometune.runs.finished import Finished, is_local

HUB_NAMES = {
    "adapter": ("peft", "adapter"),
    "merged_16bit": ("transformers", "finetune"),
    "gguf": ("gguf", "quantized"),
}
"""The hub's names for the library that loads a format, and for how a format relates to its base."""

PSF = "Python Software Foundation License Version 2 (https://docs.python.org/3/license.html)"

Gates = Sequence[tuple[str, Mapping[str, Any]]]
"""Name and gate.json of each export that a card describes: one, or one per quant."""


def write_card(finished: Finished, kind: str, gates: Gates, folder: Path, repository: str | None) -> None:
    """Write README.md for an export of format `kind`; without a repository, the card shows a placeholder for its id."""
    write_text(folder / "README.md", card(finished, kind, gates, repository or f"user/{finished.record['run_id']}"))


def write_licence(finished: Finished, folder: Path) -> None:
    """Write the texts that the base's licence requires: its own files, and NOTICE."""
    for text in licence_texts(finished):
        shutil.copyfile(text, folder / text.name)
    notice = licence_for(finished).notice
    if notice is not None:
        write_text(folder / "NOTICE", notice + "\n")


def card(finished: Finished, kind: str, gates: Gates, repository: str) -> str:
    """Return the text of the card."""
    licence, sources, record = licence_for(finished), _data_sources(finished), finished.record
    mix, table = finished.folder / "mix.json", finished.folder.parent / "table.json"
    failed = [gate for _, gate in gates if not gate["passed"]]
    in_4_bits = str(record["model"]["revision"]).startswith(f"{smollm2.PACKAGE}==")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 -- Markdown, not HTML
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("card.md.jinja").render(
        metadata=yaml.safe_dump(_metadata(finished, kind, licence.tag, sources), sort_keys=False).strip(),
        repository=repository,
        kind=kind,
        gate=failed[0] if failed else gates[0][1],
        gates=gates,
        quants=[name.rpartition("-")[2].upper() for name, _ in gates],
        licence=licence,
        base=finished.base_name,
        on_hub=not is_local(finished.model),
        merge_base=finished.merged_into if finished.base.id != finished.model.id and kind != "adapter" else None,
        package=smollm2.PACKAGE if in_4_bits else None,
        record=record,
        config=finished.config,
        date=finished.model.date_string,
        composition=json.loads(mix.read_text(encoding="utf-8")).get("sources", {}) if mix.exists() else {},
        limited=any(stage.get("limited") for stage in record["eval"].values()),
        table=json.loads(table.read_text(encoding="utf-8")) if table.exists() else None,
        sources=sources,
    )


def _metadata(finished: Finished, kind: str, licence: str, sources: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the YAML that the hub indexes."""
    library, relation = HUB_NAMES[kind]
    metadata: dict[str, Any] = {"library_name": library, "pipeline_tag": "text-generation", "license": licence}
    if licence == "other":
        metadata["license_name"] = "that-of-the-base"
        metadata["license_link"] = f"https://huggingface.co/{finished.base_name}"
    base = finished.model if kind == "adapter" else finished.base
    if not is_local(base):
        metadata |= {"base_model": base.id, "base_model_relation": relation}
    if datasets := [source["name"] for source in sources if source["hub"]]:
        metadata["datasets"] = datasets
    how = "lora" if finished.config.lora.enabled else "full-fine-tuning"
    return metadata | {"tags": ["tometune", how, "sft"]}


def _data_sources(finished: Finished) -> list[dict[str, Any]]:
    """Return role, name and licence of what the mix was made from, and whether it is on the hub."""
    found = []
    for role, source in (("base", finished.config.data.base), ("pool", finished.config.data.pool)):
        if source is None:
            continue
        name, licence = {
            "hub": (str(source.id), f"see its page, https://huggingface.co/datasets/{source.id}"),
            "pydocs": ("documentation of the Python standard library", PSF),
        }.get(source.kind.value, ("the author's own files", "the author's choice, not known to this card"))
        found.append({"role": role, "name": name, "licence": licence, "hub": source.kind.value == "hub"})
    return found
