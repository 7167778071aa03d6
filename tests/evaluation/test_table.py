import io
import json
import re
from contextlib import redirect_stdout

import pytest

from tometune.common.errors import UserError
from tometune.config.eval import EvalConfig
from tometune.evaluation.table import gains, print_run

N, BOTH = 60, ("base", "tuned")


def write(folder, stage, task, shift=0.0, count=N, **more):
    path = folder / "eval" / stage / f"{task}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    scores = [{"rouge1": n / 100 + shift, "rouge2": 0.1, "rougeL": n / 200 + (n % 2) * shift} for n in range(count)]
    rows = [{"id": str(n), "scores": scores[n], **more} for n in range(count)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def shown(folder, stages=BOTH, limited=False, tracking=None, tasks=("qa", "summaries"), judged=(), then=None):
    tasks = {key: {} for key in tasks}
    record = {"run_id": "tiny-x-s0-1", "eval": {stage: {"tasks": tasks, "limited": limited} for stage in stages}}
    record["tracking"] = tracking
    if judged:
        record["eval"]["tuned"]["judge"] = {"tasks": {key: {} for key in judged}}
    out = io.StringIO()
    with redirect_stdout(out):
        print_run(folder, record, EvalConfig(resamples=300), then)
    return out.getvalue()


@pytest.fixture
def folder(tmp_path):
    for task in ("qa", "summaries"):
        write(tmp_path, "base", task)
        write(tmp_path, "tuned", task, 0.2)
    return tmp_path


def test_base_tuned_gain_and_interval(folder):
    text = shown(folder)
    rows = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    assert ["qa", "ROUGE-1", "0.295", "0.495", "+0.200*", "+0.200 to +0.200"] in rows
    assert ["60 examples", "ROUGE-2", "0.100", "0.100", "+0.000", "+0.000 to +0.000"] in rows
    start = next(number for number, row in enumerate(rows) if row[0] == "mean of tasks")
    assert rows[start + 1][0] == "120 examples"
    low, high = map(float, rows[start + 2][-1].split(" to "))
    assert 0 < low < 0.1 < high
    assert "paired bootstrap" in text
    assert ("LIMIT" in text, "LIMIT" in shown(folder, limited=True)) == (False, True)
    assert max(len(line) for line in text.splitlines() if not line.startswith("run ")) <= 80
    gain = r"gain     ROUGE-L \+0\.100 \(95% interval \+0\.0\d\d to \+0\.1\d\d\), better than base"
    assert re.fullmatch(gain, text.splitlines()[-2])
    assert "…" not in text, "no number is cut"


def test_gains_have_the_intervals_of_the_table_and_clusters_widen_them(folder):
    def found(*tasks, stages=BOTH):
        record = {"eval": {stage: {"tasks": dict.fromkeys(tasks)} for stage in stages}}
        return gains(folder, record, EvalConfig(resamples=300))

    both, one = found("qa", "summaries"), found("qa")
    assert both["rouge1"] == pytest.approx(0.2)
    assert both["rougeL_low"] < both["rougeL"] < both["rougeL_high"]
    assert one == {**one["tasks"]["qa"], "tasks": {"qa": both["tasks"]["qa"]}}
    assert one["rougeL_high"] > both["rougeL_high"], "two tasks have a narrower interval"
    assert found("qa", stages=["tuned"]) == {}
    for path in folder.glob("eval/*/qa.jsonl"):
        rows = [json.loads(line) | {"cluster": str(n % 2)} for n, line in enumerate(path.read_text().splitlines())]
        path.write_text("\n".join(map(json.dumps, rows)))
    clustered = found("qa", "summaries")["tasks"]
    assert clustered["qa"]["rougeL_high"] > both["tasks"]["qa"]["rougeL_high"] + 0.05
    assert clustered["summaries"] == both["tasks"]["summaries"]


def test_one_stage_alone_and_the_paths_come_last_and_whole(folder, monkeypatch):
    write(folder, "tuned", "qa", 0.2, count=1)
    tracking = {"tracker": "trackio", "folders": ["outputs/" + "x" * 90], "url": None, "show": "trackio show"}
    text = shown(folder, ["tuned"], tracking=tracking)
    assert ("gain" in text, "0.495" in text) == (False, True)
    assert {("1", "example"), ("61", "examples")} <= {tuple(line.split()[:2]) for line in text.splitlines()}
    places = [f"run      {folder}", f"trackio  outputs/{'x' * 90}", "show     trackio show"]
    assert text.splitlines()[-3:] == places
    assert shown(folder, []) == f"run      {folder}\n"
    monkeypatch.chdir(folder.parent)
    tracking = {"tracker": "wandb", "folders": [str(folder / "wandb" / "x")], "sync": f"{folder.parent}/wandb sync …"}
    places = [f"run      {folder.name}", f"sync     wandb sync {folder.name}/wandb/offline*", "next     do it"]
    assert shown(folder, [], tracking=tracking, then="do it").splitlines() == places


def test_columns_are_those_that_both_stages_have(folder):
    """An answer may hold any line separator, and a base model may be older than a metric."""
    own, text = {"chrf": 0.5, "my_metric": 0.25}, "one\u2028two\x85"
    write(folder, "tuned", "qa", prediction=text, scores={**own, "nll": 1.0})
    write(folder, "base", "qa", prediction=text, scores=own)
    assert "NLL" not in shown(folder)
    write(folder, "base", "qa", prediction=text, scores={**own, "nll": 2.0})
    text = shown(folder)
    lines = [line.split()[:5] for line in text.splitlines()]
    assert ["qa", "chrF", "0.500", "0.500", "+0.000"] in lines
    assert ["60", "examples", "my_metric", "0.250", "0.250"] in lines
    assert ["NLL", "2.000", "1.000", "-1.000*", "-1.000"] in lines
    assert "lower is better" in text
    assert "mean of tasks" not in text, "no column is in both tasks"


def test_files_of_other_examples_broken_or_missing(folder):
    path = write(folder, "tuned", "qa", count=N - 1)
    with pytest.raises(UserError, match="the examples differ"):
        shown(folder)
    path.write_text("{")
    with pytest.raises(UserError, match=r"qa\.jsonl:1: not a line of scores"):
        shown(folder, ["tuned"])
    path.unlink()
    with pytest.raises(UserError, match=r"qa\.jsonl: no such file"):
        shown(folder)


def test_harness_tasks_and_win_rates_have_sections_of_their_own_and_are_not_in_the_mean(folder):
    expected = shown(folder)
    write(folder, "base", "harness_gsm8k", scores={"acc": 0.0})
    write(folder, "tuned", "harness_gsm8k", scores={"acc": 0.5})
    write(folder, "judge", "qa", scores={"win": 0.875})
    text = shown(folder, tasks=("qa", "summaries", "harness_gsm8k"), judged=["qa"])
    assert re.search(r"harness_gsm8k +acc +0\.000 +0\.500 +\+0\.500\*", text)
    assert re.search(r"qa, judged +win rate +0\.500 +0\.875 +\+0\.375\*", text), "compared with a half"
    means = [found[found.index("mean of tasks") :].split()[:20] for found in (text, expected)]
    assert means[0] == means[1]
    assert "judged" not in shown(folder, ["tuned"], judged=["qa"])
