"""Export a finished run as adapter, merged model or GGUF, check each export against the run, and publish it.

tometune export run=outputs/RUN_ID  # merged, for transformers and vLLM
tometune export run=outputs/RUN_ID format=gguf quant=q4_k_m  # for llama.cpp
tometune export run=outputs/RUN_ID format=[adapter,gguf]
tometune export run=outputs/RUN_ID push_to=user/name  # to the hub, private
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tometune.common.errors import UserError
from tometune.common.process import quick_imports
from tometune.config.app import verb
from tometune.config.export import listed
from tometune.config.root import Config
from tometune.runs.inputs import cache_folder


@verb
def main(config: Config) -> None:
    """Find the run, check that everything can be done, make and check each export, publish."""
    from tometune.runs.finished import find_finished

    finished = find_finished(config)
    formats = listed(config.format)
    folder = Path(config.export.folder).expanduser() if config.export.folder else finished.folder / "export"
    if config.push_to is not None:
        from tometune.exporting.hub import check_push

        check_push(finished, config.push_to, formats, config.private)
    with quick_imports():
        from tometune.exporting import gguf
        from tometune.exporting.build import Builder, check_folders
        from tometune.exporting.formats import exports_of
        from tometune.exporting.hub import publish
        from tometune.models.source import check_source

    exports = exports_of(formats, listed(config.quant), folder)
    check_folders(finished, folder, exports)
    if "gguf" in formats and (missing := gguf.missing()):
        raise UserError(f"format=gguf: needs {', '.join(missing)}; run: {gguf.INSTALL} and the same command again")
    try:
        check_source(finished.base)
        builder = Builder(finished, cache_folder(config), folder, answer=formats != ["adapter"])
        gates = builder.make_all(exports, print_summary)
    except UserError as error:
        base = config.export.base
        raise UserError(str(error).replace(f"model.id={base}", f"export.base={base}")) from error
    if config.push_to is not None:
        publish(finished, gates, config.push_to, config.private)


def print_summary(gate: dict[str, Any]) -> None:
    """Print one line about an export."""
    checks, rouge = gate["checks"], gate["checks"].get("rouge", {})
    parts = [f"{gate['folder']}: {'passed' if gate['passed'] else 'FAILED'}"]
    if "logits" in checks:
        parts.append(f"{checks['logits']['mean_divergence']:.2g} nats per token from {gate['reference']['tuned']}")
    if "change" in checks:
        parts.append(f"holds {checks['change']['share']:.1%} of the change")
    if rouge.get("stored"):
        parts.append(f"same model, so the {rouge['examples']} scored answers stand")
    elif rouge:
        before, after = rouge["adapter"]["rougeL"], rouge["export"]["rougeL"]
        equal = f"{rouge['same_answers']} of {rouge['examples']} answers equal"
        parts.append(f"ROUGE-L {before:.3f} → {after:.3f}, {equal}")
    print(f"{', '.join(parts)} ({gate['seconds']['export']:.0f} s, checks {gate['seconds']['gate']:.0f} s)")


if __name__ == "__main__":
    main()
