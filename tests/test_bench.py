"""scripts/bench.py at a tiny size: what it prints and writes, not how fast anything is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "scripts" / "bench.py"


@pytest.mark.nightly
@pytest.mark.whole
def test_every_figure_has_a_target_and_its_circumstances(clean_env: dict[str, str], tmp_path: Path) -> None:
    sizes = ["--rows", "60", "--pairs", "50", "--repeat", "1", "--model", "tiny", "--runs", "2"]
    done = subprocess.run(
        [sys.executable, BENCH, *sizes, "--json", "bench.json"],
        env={**clean_env, "COLUMNS": "80", "TMPDIR": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert written["data"] == "made-up rows of the same shape, 60 rows of the base; model=tiny"
    assert " cores, load " in written["machine"]
    assert "torch" in written["versions"]
    targets = [(figure["unit"], figure["target"]) for figure in written["figures"] if figure["target"]]
    sweep = [("times", 1.1), ("s", 1)]
    assert targets == [("rows/s", 4000), ("s", 5), *[("s", 1.5)] * 3, *sweep, ("pairs/s", 15_000), ("GB", 3)]
    assert all(figure["median"] > 0 for figure in written["figures"])
    table = done.stdout[done.stdout.index("\nwhat ") :]
    assert max(map(len, table.splitlines())) <= 80
    assert all(figure["name"] in table for figure in written["figures"])
    assert "made-up rows" in done.stdout
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("tometune-bench")] == []
