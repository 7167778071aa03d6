"""What plan=true says a sweep can detect, from earlier tables, or from the scores of a base model."""

import json
import re

import pytest

from tests.reporting.sweeps import TASKS, write_run, write_table
from tometune.config.root import Config, PathsConfig
from tometune.reporting.analysis import build
from tometune.reporting.report_files import write
from tometune.sweep.power import power_lines


@pytest.fixture
def config(tmp_path):
    config = Config(paths=PathsConfig(outputs=str(tmp_path / "outputs"), multirun=str(tmp_path / "multirun")))
    config.model.name = "tiny"
    return config


def numbers(line):
    """The smallest difference, the seeds and the examples of a line; None is no number."""
    found = re.fullmatch(
        r"  .+: differences from ([\d.]+); .+ takes (\S+)(?: number of)? seeds or (\S+)(?: number of)? examples", line
    )
    assert found, line
    return float(found[1]), *(None if text == "no" else int(text.replace(",", "")) for text in found.groups()[1:])


def test_nothing_is_known_or_a_single_seed_allows_no_test(config):
    assert power_lines(config, 1, {"qa": 10}) == ["power: a single seed allows no test; add seeds, e.g. seed=0,1,2"]
    (line,) = power_lines(config, 3, {"qa": 10})
    assert line.startswith("power: unknown until a sweep of this model")


def test_deviations_of_earlier_sweeps(config, tmp_path):
    sweep = tmp_path / "multirun" / "table"
    write_table(sweep, deviation=0.01, noise=0.02, examples=100)
    write(build(sweep, 500, 0.95))
    (tmp_path / "multirun" / "broken").mkdir()
    (tmp_path / "multirun" / "broken" / "table.json").write_text("[]")
    head, *lines = power_lines(config, 3, dict.fromkeys(TASKS, 100))
    assert head == "power of 80% at the level 0.05 with 3 seeds and 400 examples, from earlier sweeps:"
    assert [line.partition(":")[0].strip() for line in lines] == ["ROUGE-1", "ROUGE-2", "ROUGE-L"]
    least, seeds, examples = numbers(lines[2])
    assert 0.02 < least < 0.08, "about 3.3 deviations of 0.014"
    assert 5 < seeds < 20
    assert examples is None, "the deviation over seeds alone is too large"
    assert numbers(power_lines(config, 30, dict.fromkeys(TASKS, 100))[3])[0] < 0.01
    config.report.primary, config.report.margin = "rougeL", 0.1
    _, line = power_lines(config, 3, dict.fromkeys(TASKS, 25))
    assert "ROUGE-L" in line
    assert numbers(line)[1] <= 3, "the margin is larger than what can be detected"
    assert numbers(line)[2] == 100
    config.model.name = "other"
    assert power_lines(config, 3, dict.fromkeys(TASKS, 100))[0].startswith("power: unknown")
    config.model.name = "tiny"
    assert "base model" in power_lines(config, 3, {"summarisation": 100})[0], "the table has other tasks"


def test_the_base_models_scores(config, tmp_path):
    run = write_run(tmp_path / "outputs", noise=0.0, examples=400)
    (tmp_path / "outputs" / "broken").mkdir()
    (tmp_path / "outputs" / "broken" / "run.json").write_text("{")
    head, *lines = power_lines(config, 3, dict.fromkeys(TASKS, 400))
    assert head.endswith("1,600 examples, from the base model's scores, so over examples only:")
    # The difficulty of an example has the deviation 0.12, so the error is √2 · 0.12 / √1600, and 2.8 of it are needed.
    assert numbers(lines[0])[0] == pytest.approx(2.8 * 2**0.5 * 0.12 / 40, rel=0.15)
    assert numbers(lines[0])[1] is None
    assert 1_600 < numbers(lines[0])[2] < 6_400
    for path in (run / "eval" / "base").glob("*.jsonl"):  # a metric that every example has at 0
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        changed = [json.dumps(row | {"scores": {**row["scores"], "exact_match": 0.0}}) + "\n" for row in rows]
        path.write_text("".join(changed))
    assert power_lines(config, 3, dict.fromkeys(TASKS, 400)) == [
        *(head, *lines),
        "  exact: unknown, since it is the same in all these scores",
    ]
    lines.append("  exact: unknown, since it is the same in all these scores")
    path = run / "eval" / "base" / "held_out_pool.jsonl"
    path.write_text((run / "eval" / "base" / "summarisation.jsonl").read_text().replace("0.", "9."))
    assert power_lines(config, 3, {**dict.fromkeys(TASKS, 400), "held_out_pool": 400}) == [head, *lines]
    path = run / "eval" / "base" / "summarisation.jsonl"
    path.write_text("".join(json.dumps({"id": number}) + "\n" for number in range(3)))
    assert power_lines(config, 3, dict.fromkeys(TASKS, 400))[0].startswith("power: unknown")
