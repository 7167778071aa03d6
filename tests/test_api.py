"""`tometune.api`: the verbs as functions, several times in one process and in a notebook."""

import json
import re
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig

from tests.reporting.sweeps import write_run
from tometune.api import UserError, evaluate, report, train


@pytest.mark.parametrize(
    ("verb", "overrides", "keywords", "problem"),
    [
        (train, ["lr=1"], {}, "lr=1: no such key; write trainer.learning_rate=1"),
        (train, [], {"trainer": {"max_stps": 3}}, "trainer.max_stps: no such key; did you mean trainer.max_steps?"),
        (train, [], {"lora": {"r": 0}, "model": "tiny"}, "lora.r=0: not 1 or more"),
        (train, ["-m", "seed=0,1"], {}, "tometune.api.train: makes one run; call it for each"),
        (train, ["--help"], {}, "tometune.api.train: makes one run"),
        (train, [], {"plan": True}, "plan=True: is for the command line"),
        (evaluate, [], {"run": "none"}, "run=none: no such folder or run id"),
        (evaluate, [], {"data": {"rows": 3}}, "data.rows=3: only train and prepare read it"),
        (report, [], {"sweep": {"name": "none"}}, "multirun/none: no such sweep folder"),
        (report, [], {}, "no sweep in multirun; make one"),
    ],
)
def test_errors_are_raised(monkeypatch, tmp_path, verb, overrides, keywords, problem):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        verb(*overrides, **keywords)
    assert str(error.value).startswith(problem)
    assert HydraConfig.instance().cfg is None
    assert list(tmp_path.iterdir()) == []


def test_the_report_of_a_sweep(tmp_path, capsys):
    write_run(tmp_path / "one")
    made = report(sweep={"name": "one"}, paths={"multirun": tmp_path}, eval={"resamples": 200, "confidence": 0.9})
    assert made.folder == tmp_path / "one"
    assert (made.folder / "report.html").is_file()
    assert made.record == json.loads((made.folder / "table.json").read_text())
    assert made.scores == made.record["rows"]
    assert capsys.readouterr().out == ""


CHEAP = {"experiment=quickstart": "experiment=smoke", '"max_steps": 20': '"max_steps": 2', '"limit": 10': '"limit": 1'}


@pytest.mark.whole
@pytest.mark.nightly
def test_the_example_of_the_docs_in_ipython_twice(place):
    pytest.importorskip("IPython")
    page = Path(__file__).parents[1] / "docs" / "command_line.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for was, now in CHEAP.items():
        assert was in example
        example = example.replace(was, now)
    (place.folder / "mine.ipy").write_text(2 * example)
    done = place.python("-m", "IPython", "--colors=NoColor", "mine.ipy")
    assert done.returncode == 0, done.stdout + done.stderr
    first, second, table, error, *repeated = done.stdout.splitlines()
    assert re.fullmatch(r"multirun/mine/tiny-pydocs_64-s0-\w{8} 0\.\d+", first)
    assert re.fullmatch(r"multirun/mine/tiny-pydocs_64-s1-\w{8} 0\.\d+", second)
    assert table == "multirun/mine/report.html [0, 2]"
    assert error == "lr=0.0001: no such key; write trainer.learning_rate=0.0001"
    assert repeated == [first, second, table, error], "the runs are found"
