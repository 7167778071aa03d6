"""The content of the W&B report, without a server."""

import json

import pytest
import wandb_workspaces.reports.v2 as wr

from tometune.reporting.wandb_report import build, factors, spec
from tometune.tracking.tracker import sanitise


@pytest.fixture
def blocks(table_report):
    return spec(build(table_report.table, "tometune", ""))["spec"]["blocks"]


def grids(blocks):
    return [block["metadata"] for block in blocks if block["type"] == "panel-grid"]


def panels(blocks):
    found = [panel for grid in grids(blocks) for panel in grid["panelBankSectionConfig"]["panels"]]
    return [(panel["viewType"], panel["config"]) for panel in found]


def test_the_comparison_panels_are_there(blocks):
    kinds = [kind for kind, _ in panels(blocks)]
    assert kinds.count("Run History Line Plot") == 2
    assert kinds.count("Bar Chart") == 4
    assert kinds.count("Scatter Plot") == 3
    assert kinds.count("Run Comparer") == 1
    assert kinds.count("Media Browser") == 1
    loss = next(config for kind, config in panels(blocks) if kind == "Run History Line Plot")
    assert (loss["metrics"], loss["groupBy"], loss["groupArea"]) == (["train/loss"], "data.value.name", "minmax")
    bars = [config for kind, config in panels(blocks) if kind == "Bar Chart"]
    assert [each["metrics"] for each in bars[:3]] == [[f"eval/tuned/{name}"] for name in ("rouge1", "rouge2", "rougeL")]
    assert {each["groupArea"] for each in bars[:3]} == {"stddev"}
    dots = [config for kind, config in panels(blocks) if kind == "Scatter Plot"]
    assert {each["xAxis"] for each in dots} == {"summary:data/rows"}


def test_the_answers_and_the_table_are_markdown(blocks):
    words, table = (block["content"] for block in blocks if block["type"] == "markdown-block")
    assert words.startswith("### Is pydocs_3k better than pydocs_1k? Yes.")
    assert "| model | data | seeds | ROUGE-1 |" in table
    assert table.count("\n| tiny |") == 4


def test_the_runs_are_those_of_the_table_by_their_ids(blocks, table_report):
    sets = [found for grid in grids(blocks) for found in grid["runSets"]]
    names = [found["name"] for found in sets]
    assert names == ["tiny", "tiny", "tiny", "report"]
    values = [found["filters"]["filters"][0]["value"] for found in sets]
    assert sorted(values[0]) == sorted(sanitise(run.id, 64) for run in table_report.sweep.runs)
    assert values[-1] == ["report-table"]
    assert {found["filters"]["filters"][0]["key"]["name"] for found in sets} == {"name"}  # W&B's word for a run's id


def test_panels_do_not_overlap(blocks):
    for grid in grids(blocks):
        taken = set()
        for panel in grid["panelBankSectionConfig"]["panels"]:
            place = panel["layout"]
            across, down = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
            cells = {(x, y) for x in across for y in down}
            assert place["x"] + place["w"] <= 24
            assert not cells & taken
            taken |= cells


def test_wandb_reads_it_back(table_report):
    made = build(table_report.table, "tometune", "")
    again = wr.Report._from_model(type(made._to_model()).model_validate(json.loads(json.dumps(spec(made)))))
    assert again.title == "Sweep table"
    kinds = [type(block).__name__ for block in again.blocks]
    assert "UnknownBlock" not in kinds
    assert kinds.count("PanelGrid") == 4


def test_several_models_and_settings(one_seed, ranks):
    sets = grids(spec(build(one_seed.table, "p", ""))["spec"]["blocks"])[0]["runSets"]
    assert [(found["name"], len(found["filters"]["filters"][0]["value"])) for found in sets] == [
        *(("small", 3), ("tiny", 3)),
    ]
    assert factors(ranks.table) == ["lora.r"]
    content = spec(build(ranks.table, "p", ""))["spec"]["blocks"]
    bars = [config for kind, config in panels(content) if kind == "Bar Chart"]
    assert bars[0]["groupBy"] == "lora.value.r"


def test_one_cell(one_cell):
    assert factors(one_cell.table) == ["data.name"]
    content = spec(build(one_cell.table, "p", ""))["spec"]["blocks"]
    first = next(block for block in content if block["type"] == "markdown-block")
    assert first["content"].startswith("There is nothing to compare")
