import pytest

from tests.reporting.sweeps import TASKS, edit, editing, write_table
from tometune.reporting.analysis import build
from tometune.reporting.conclusions import answers, cautions, headline, published_answer
from tometune.reporting.report_files import as_html


def test_a_planted_effect_is_a_yes(table):
    (answer,) = answers(table)
    assert (answer.question, answer.verdict) == ("Is pydocs_3k better than pydocs_1k?", "Yes.")
    text = " ".join(answer.sentences)
    assert "ROUGE-L +0.1" in text
    assert "Holm-corrected p" in text
    assert "Seeds per arm needed to detect a difference of 0.01 with 80% power: about" in text
    assert "pydocs_2k vs. pydocs_1k" in text
    assert cautions(table) == []


@pytest.mark.parametrize(
    ("effect", "deviation", "verdict"),
    [(0.0, 0.02, "Undecided: no significant difference."), (-0.05, 0.001, "No, it is worse.")],
)
def test_no_effect_and_a_negative_one(tmp_path, report, effect, deviation, verdict):
    write_table(tmp_path, effect=effect, deviation=deviation, examples=60)
    (answer,) = answers(report(tmp_path).table)
    assert answer.verdict == verdict


def test_a_single_seed_cannot_tell(one_seed):
    table = one_seed.table
    assert headline(table) == [("small pydocs_3k", "small pydocs_1k"), ("tiny pydocs_3k", "tiny pydocs_1k")]
    first = answers(table)[0]
    assert first.question == "small: is pydocs_3k better than pydocs_1k?"
    assert first.verdict == "A single seed cannot tell."
    assert "p = " not in " ".join(first.sentences)
    assert any("A single seed, so the deviation is unknown" in text for text in cautions(table))


def test_missing_runs_unpaired_arms_and_too_few_resamples_are_cautions(sweep):
    edit(sorted(sweep.iterdir())[0], status="failed", error="no")
    text = " ".join(cautions(build(sweep, 100, 0.95).table))
    assert "Missing runs: 1; the means are over the others." in text
    assert "independent samples" in text
    assert "eval.resamples=100 is too small" in text


def test_too_few_examples_for_any_number_of_seeds(tmp_path, report):
    write_table(tmp_path, examples=8, noise=0.2)
    (answer,) = answers(report(tmp_path).table)
    assert "cannot be detected reliably with any number of seeds" in " ".join(answer.sentences)


def test_the_published_table_cannot_tell():
    assert published_answer(0.95).startswith(
        "300k vs. 100k in the published table: ROUGE-1 −0.010 (−0.049 to +0.029, p = 0.49), "
        "ROUGE-2 −0.017 (−0.042 to +0.008, p = 0.11), ROUGE-L +0.004 (−0.011 to +0.019, p = 0.50)."
    )


def set_tokens(sweep, tokens, tasks=("question_answering",)):
    """Set the mean number of answer tokens in the runs of pydocs_3k; None removes the count."""
    for path in sweep.glob("*pydocs_3k*"):
        with editing(path) as record:
            for task in tasks:
                entry = record["eval"]["tuned"]["tasks"][task]
                entry["tokens"] = None if tokens is None else tokens * entry["examples"]


def test_short_answers_are_a_caution(sweep, report):
    set_tokens(sweep, 4)
    made = report(sweep)
    tokens = [row["answer_tokens"]["question_answering"] for row in made.table["rows"]]
    assert tokens == [20, 20, 20, 4]
    (caution,) = cautions(made.table)
    expected = "20.0 for pydocs_1k, 20.0 for pydocs_2k and 4.0 for pydocs_3k"
    assert caution.startswith(f"Answer length on question_answering in tokens: {expected}. ROUGE penalises answers")
    assert "<h2>Answer length</h2>" in as_html(made)
    set_tokens(sweep, 18)
    assert cautions(report(sweep).table) == [], "a tenth shorter does not matter"


def test_runs_without_base_scores_or_token_counts(sweep, report):
    for path in sweep.glob("*pydocs_1k*"):
        with editing(path) as record:
            del record["eval"]["base"]
    set_tokens(sweep, None, TASKS)
    made = report(sweep)
    first, *_, last = made.table["rows"]
    assert (first["cell"], first["answer_tokens"]["summarisation"]) == ("before tiny", 20)
    assert last["answer_tokens"]["summarisation"] is None
    assert cautions(made.table) == []
    assert "<td>–</td>" in as_html(made)
