"""Export a finished run as adapter, merged model or GGUF, check each against what was trained, publish it if asked."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tometune.common.errors import UserError
from tometune.common.imports import quick_imports
from tometune.config.app import verb
from tometune.config.export import listed
from tometune.config.root import Config
from tometune.runs.inputs import cache_folder

if TYPE_CHECKING:
    from tometune.exporting.asked import Export
    from tometune.exporting.build import Builder
    from tometune.runs.finished import Finished

log = logging.getLogger(__name__)


@verb
def main(config: Config) -> None:
    """Find the run, check that all of it can be done, make each export and hold it at the gate, publish."""
    from tometune.runs.finished import find_finished

    finished = find_finished(config)
    formats, quants = listed(config.format), listed(config.quant)
    folder = Path(config.export.folder).expanduser() if config.export.folder else finished.folder / "export"
    if config.push_to is not None:
        from tometune.exporting.hub import check_push

        check_push(finished, config.push_to, formats, config.private)
    with quick_imports():
        from tometune.exporting import llama_cpp
        from tometune.exporting.asked import asked_for, parameters_of
        from tometune.exporting.build import Builder
        from tometune.exporting.merged import naming_base
        from tometune.exporting.places import check_places
        from tometune.exporting.room import bytes_needed, check_room
        from tometune.models.load import check_source

    wanted = asked_for(formats, quants, folder)
    merged = asked_for(["merged_16bit"] if "gguf" in formats else [], [], folder)
    check_places(finished, folder, [*wanted, *merged])
    with naming_base(config.export.base is not None):
        check_source(finished.base)
    weights = (finished.adapter / "adapter_model.safetensors").stat().st_size if finished.whole is None else 0
    check_room(folder, bytes_needed(parameters_of(finished), weights, [(one.format, one.quant) for one in wanted]))
    missing = llama_cpp.missing() if "gguf" in formats else []
    builder = Builder(finished, cache_folder(config), folder)
    gates = make_all(builder, asked_for(sorted({*formats, "merged_16bit"}), [], folder) if missing else wanted)
    if missing:
        raise UserError(
            f"format=gguf: needs {', '.join(missing)}; run: {llama_cpp.INSTALL} and the same command again "
            f"(the merged model is kept in {folder / 'merged_16bit'})"
        )
    if config.push_to is not None:
        publish(finished, wanted, gates, config.push_to, config.private)


def make_all(builder: Builder, wanted: list[Export]) -> dict[str, dict[str, Any]]:
    """Make each export and print a line on it; return their gate.json by name.

    A GGUF is made of the merged model, which is made first even if it was not asked for.

    Raises:
        GateError: one answers differently from what was trained; all were tried.
    """
    from tometune.exporting.asked import asked_for
    from tometune.exporting.gate import GateError

    names = [export.format for export in wanted]
    before = [] if "gguf" not in names or "merged_16bit" in names else asked_for(["merged_16bit"], [], builder.folder)
    gates: dict[str, dict[str, Any]] = {}
    try:
        for export in sorted([*before, *wanted], key=lambda one: one.format == "gguf"):
            if export.format == "gguf" and not gates["merged_16bit"]["passed"]:
                continue  # what it is made of is wrong already
            gates[export.name] = gate = builder.make(export)
            print(line(export, gate))
    finally:
        builder.clean()
    failed = {name: gate["problems"][0] for name, gate in gates.items() if not gate["passed"]}
    if failed:
        raise GateError("; ".join(f"{name} failed its gate: {problem}" for name, problem in failed.items()))
    return gates


def line(export: Export, gate: dict[str, Any]) -> str:
    """Return one line on an export."""
    checks, seconds = gate["checks"], gate["seconds"]
    where = gate.get("folder", export.folder)
    said = [f"{where}: {'passed' if gate['passed'] else 'FAILED'}"]
    if "logits" in checks:
        tuned = gate["reference"].get("tuned", "the adapter")
        said.append(f"{checks['logits']['mean_divergence']:.2g} nats a token from {tuned}")
    rouge = checks.get("rouge", {})
    if rouge.get("stored"):
        said.append(f"the {rouge['examples']} answers that the run was scored on stand")
    elif rouge:
        said.append(
            f"ROUGE-L {rouge['adapter']['rougeL']:.3f} → {rouge['export']['rougeL']:.3f}, "
            f"{rouge['same_answers']} of {rouge['examples']} answers the same"
        )
    return f"{', '.join(said)} ({seconds['export']:.0f} s, gate {seconds['gate']:.0f} s)"


def publish(
    finished: Finished, wanted: list[Export], gates: dict[str, dict[str, Any]], push_to: str, private: bool
) -> None:
    """Upload each format into its repository, with a card that names it.

    Raises:
        UserError: an export was changed since its gate passed, or the hub does not take it.
    """
    from tometune.exporting.card import write_card
    from tometune.exporting.files import changed
    from tometune.exporting.hub import push, repositories

    for export in wanted:
        if others := changed(export.folder, gates[export.name]):
            raise UserError(
                f"{export.folder}: {', '.join(others)} changed since its gate passed, so it is not published; the same "
                "command makes it again"
            )
    for kind, repository in repositories(push_to, list(dict.fromkeys(one.format for one in wanted))).items():
        exports = [one for one in wanted if one.format == kind]
        with TemporaryDirectory() as folder:
            write_card(finished, kind, [(one.name, gates[one.name]) for one in exports], Path(folder), repository)
            url = push([one.folder for one in exports], Path(folder) / "README.md", repository, private)
        print(f"{kind}: {url}")


if __name__ == "__main__":
    main()
