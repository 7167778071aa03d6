"""The table of a sweep: what each cell reached, what differs, how sure that is; for the terminal and as a page."""

from pathlib import Path

from tometune.config.errors import UserError
from tometune.config.main import verb
from tometune.config.root import Config


@verb
def main(config: Config) -> None:
    """Read the runs of a sweep, pair their scores by example, compare, and write it all down."""
    from tometune.reporting.report import build, write
    from tometune.reporting.tables import print_report

    folder = sweep_folder(config)
    report = build(folder, config.eval.resamples, config.eval.confidence)
    print_report(report.table)
    print(f"{write(report)} (and table.md, table.csv, table.json beside it)")


def sweep_folder(config: Config) -> Path:
    """Return the folder of the sweep to report on.

    Raises:
        UserError: none was named; says which there are.
    """
    from tometune.run import runs_folder

    if config.sweep.name is None:
        folder = Path(config.paths.multirun).expanduser()
        names = sorted(path.name for path in folder.glob("*/"))
        raise UserError(f"sweep.name: missing; name a folder of {folder}: {', '.join(names) or 'there are none'}")
    return runs_folder(config)


if __name__ == "__main__":
    main()
