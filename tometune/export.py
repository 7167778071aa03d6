"""Export a finished run as adapter, merged model or GGUF, check each export against the run, and publish it."""

from __future__ import annotations

from pathlib import Path

from tometune.common.errors import UserError
from tometune.common.imports import quick_imports
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
        from tometune.exporting.build import Builder, exports_of
        from tometune.exporting.folders import check_folders, check_space
        from tometune.exporting.hub import publish
        from tometune.exporting.merge import naming_base
        from tometune.models.source import check_source

    exports = exports_of(formats, listed(config.quant), folder)
    merged = exports_of(["merged_16bit"], [], folder)
    check_folders(finished, folder, [one.folder for one in [*exports, *(merged if "gguf" in formats else [])]])
    with naming_base(finished):
        check_source(finished.base)
    check_space(finished, folder, [(one.format, one.quant) for one in exports])
    missing = gguf.missing() if "gguf" in formats else []
    wanted = [one for one in exports if one.format != "gguf"] + merged if missing else exports
    gates = Builder(finished, cache_folder(config), folder).make_all(wanted, print)
    if missing:
        raise UserError(
            f"format=gguf: needs {', '.join(missing)}; run: {gguf.INSTALL} and the same command again "
            f"(the merged model is kept in {merged[0].folder})"
        )
    if config.push_to is not None:
        publish(finished, exports, gates, config.push_to, config.private)


if __name__ == "__main__":
    main()
