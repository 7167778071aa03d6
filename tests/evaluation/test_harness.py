"""lm-evaluation-harness over local files, and what is said without it."""

import json
from hashlib import sha256
from statistics import fmean

import pytest
import torch

from tometune.common.errors import UserError
from tometune.config.eval import EvalConfig
from tometune.evaluation import harness, scoring
from tometune.evaluation.harness import fingerprint, load_harness
from tometune.evaluation.results import read_scores
from tometune.evaluation.scoring import Scorer
from tometune.evaluation.tasks import load_tasks

SAY = """task: say
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{input}}}}"
doc_to_target: "{{{{target}}}}"
generation_kwargs: {{until: ["\\n\\n"], do_sample: false, max_gen_toks: 8}}
filter_list:
  - {{name: whole, filter: [{{function: take_first}}]}}
  - {{name: first, filter: [{{function: regex, regex_pattern: "(.)"}}, {{function: take_first}}]}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
  - {{metric: bleu, aggregation: bleu, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
PICK = """task: pick
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{input}}}}"
doc_to_choice: [a fox, a dog]
doc_to_target: "{{{{right}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""


@pytest.fixture(autouse=True)
def forget():
    load_harness.cache_clear()


@pytest.fixture
def files(tmp_path):
    """Two tasks of the harness as YAML files over one JSONL file."""
    rows = [{"input": f"Say {n} words.", "target": f"fox {n}", "right": n % 2} for n in range(6)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = [tmp_path / "say.yaml", tmp_path / "pick.yaml"]
    for path, text in zip(paths, (SAY, PICK), strict=True):
        path.write_text(text.format(path=data))
    return list(map(str, paths))


@pytest.fixture
def score(jsonl, files, tokenizer, model, tmp_path):
    """A function that scores the model on one task of our own and two of the harness."""

    def stage(**settings):
        task = jsonl([{"input": f"Say {n}.", "references": ["the fox"]} for n in range(3)], max_new_tokens=4)
        config = EvalConfig(tasks={"own": task}, harness=files, batch_size=4, max_prompt_tokens=256, **settings)
        return Scorer(tokenizer, load_tasks(config), config, tmp_path, tmp_path / "cache").stage("base", model)

    return stage


def test_samples_are_kept_like_the_scores_of_other_tasks(model, score, tmp_path, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval")
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)  # which runs pip and compilers
    evaluated, real = [], lm_eval.simple_evaluate
    monkeypatch.setattr(lm_eval, "simple_evaluate", lambda **given: evaluated.append(real(**given)) or evaluated[-1])

    def rows(task):
        return list(read_scores(tmp_path / f"eval/base/harness_{task}.jsonl").values())

    model.train()
    scores = score()
    assert model.training
    assert list(scores["tasks"]) == ["own", "harness_say", "harness_pick"]
    assert scores["rougeL"] == scores["tasks"]["own"]["rougeL"], "the mean over tasks is that of our own"
    say, pick = rows("say"), rows("pick")
    assert [row["id"] for row in say] == [row["id"] for row in pick] == list("012345")
    assert say[2]["prompt"] == "<|im_start|>user\nSay 2 words.<|im_end|>\n<|im_start|>assistant\n"
    assert say[2]["references"] == ["fox 2"]
    assert set(say[2]["scores"]) == {"exact_match.whole", "exact_match.first"}, "BLEU is no mean over examples"
    assert set(pick[2]["scores"]) == {"acc", "acc_norm"}
    assert 0 < scores["tasks"]["harness_pick"]["acc"] < 1, "both choices are right for some"
    (found,) = evaluated
    for column in ("acc", "acc_norm"):
        mean = fmean(row["scores"][column] for row in pick)
        assert scores["tasks"]["harness_pick"][column] == mean == found["results"]["pick"][f"{column},none"]
    assert score() == scores
    assert len(evaluated) == 1, "read again"
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(5)
    tuned = score()
    assert len(evaluated) == 2
    assert rows("say") != say
    assert (tuned["tasks"]["harness_say"]["examples"], tuned["limited"]) == (6, False)
    assert score(limit=2)["limited"]
    assert len(rows("pick")) == 2


def test_without_tasks_of_our_own_no_engine_is_chosen(model, tokenizer, files, tmp_path, monkeypatch):
    """As for a run with held-out rows that is scored again with another harness."""
    pytest.importorskip("lm_eval")
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)
    monkeypatch.setattr(scoring, "engine_for", None)
    config = EvalConfig(tasks={}, harness=files[1:], batch_size=4)
    scores = Scorer(tokenizer, [], config, tmp_path, tmp_path / "cache").stage("base", model)
    assert (list(scores["tasks"]), scores["acc"]) == (["harness_pick"], scores["tasks"]["harness_pick"]["acc"])


def test_a_task_that_cannot_be_loaded_or_runs_generated_code_is_one_line(score, files, tmp_path, monkeypatch):
    tasks = pytest.importorskip("lm_eval.tasks")
    with monkeypatch.context() as patch:  # the package's own 10,000 tasks take seconds to list
        ours = tasks.TaskManager(include_defaults=False, include_path=str(tmp_path))
        patch.setattr(tasks, "TaskManager", lambda include_defaults: ours if include_defaults else None)
        with pytest.raises(UserError, match=r"^eval\.harness=picks: no such task; did you mean pick\?") as raised:
            load_harness(("picks",))
    assert "\n" not in str(raised.value)
    broken = tmp_path / "broken.yaml"
    broken.write_text("task: broken\ndataset_path: json\ndataset_kwargs: {data_files: {test: gone.jsonl}}\n")
    with pytest.raises(UserError, match=r"broken\.yaml: cannot be loaded \(.*\); fix this, or leave it out$"):
        load_harness((str(broken),))
    with (tmp_path / "say.yaml").open("a") as task:
        task.write("unsafe_code: true\n")
    with pytest.raises(UserError, match=r"^eval\.harness: .*say which is marked as unsafe.*leave this task out$"):
        score()


def test_without_the_package_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(harness.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"^eval\.harness: needs lm-evaluation-harness; run: .* pip install 'lm_eval"):
        load_harness(("gsm8k",))
    assert load_harness(()) == {}


def test_the_identity_covers_the_content_of_a_file_and_not_its_place(files, tmp_path):
    first = fingerprint(files[0])
    (tmp_path / "other.yaml").write_bytes((tmp_path / "say.yaml").read_bytes())
    assert fingerprint(str(tmp_path / "other.yaml")) == first != fingerprint(files[1])
    (tmp_path / "other.yaml").write_text("task: [")
    assert fingerprint(str(tmp_path / "other.yaml")) == sha256(b"task: [").hexdigest(), "loading it reports the error"
    with pytest.raises(UserError, match=r"gone\.yaml"):
        fingerprint(str(tmp_path / "gone.yaml"))


NAMED = {
    "one.yaml": "task: one\ninclude: parts/base  # a comment\n",
    "two.yaml": "task: two\ninclude: [parts/base, parts/more.yaml]\ndoc_to_text: !function parts.text.ask\n",
    "parts/base": "process_docs: !function 'clean.rows'\nmetric_list: [{metric: !function os.path.join}]\n",
    "parts/clean.py": "",
    "parts/more.yaml": "",
    "parts/text.py": "",
}


@pytest.mark.parametrize(
    ("task", "named"),
    [("one.yaml", ["parts/base", "parts/clean.py"]), ("two.yaml", [name for name in NAMED if name != "one.yaml"])],
)
def test_the_identity_covers_the_files_that_a_file_names(tmp_path, task, named):
    for place in ("here", "there"):
        (tmp_path / place / "parts").mkdir(parents=True)
        for name, text in NAMED.items():
            (tmp_path / place / name).write_text(text)
    first = fingerprint(str(tmp_path / "here" / task))
    assert fingerprint(str(tmp_path / "there" / task)) == first
    changed = set()
    for name in NAMED:
        (tmp_path / "here" / name).write_text(f"{NAMED[name]}# changed")
        changed |= {name} if fingerprint(str(tmp_path / "here" / task)) != first else set()
        (tmp_path / "here" / name).write_text(NAMED[name])
    assert changed == {task, *named}
    (tmp_path / "here" / "parts/base").unlink()
    with pytest.raises(UserError, match="parts/base"):
        fingerprint(str(tmp_path / "here" / task))
