"""The data card: its content, that texts stay texts, many sources. (test_browser.py opens it.)"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd

from tests.data.chatml import chatml_tokenizer
from tests.data.conftest import conversation, files, mix_of, write_jsonl  # noqa: F401
from tests.reporting.sweeps import write_run
from tometune.config.data import DataConfig, NearDedupConfig
from tometune.data.contamination import MixOverlaps
from tometune.data.mix import Mix, build_mix
from tometune.data.preview import profile, samples
from tometune.data.tokens import Counts, tokenise
from tometune.reporting import data_card
from tometune.reporting.data_card import card, card_markdown, card_page, describe_overlaps, folded, inline
from tometune.reporting.html import find_cards, link_runs

# ruff: noqa: F811 - `mix_of` is a fixture of the room `data`
Build = Callable[..., Mix]
EVIL = "<script>alert(1)</script><img src=http://x.test/y onerror=alert(2)> **bold** $x^2$ | `c`"


def values_of(mix: Mix, tokens: Any) -> pd.DataFrame:
    """The values of the rows of a mix, in the cache of its sources."""
    return profile(mix, tokens, mix.parts["base"].source.folder.parents[1])


def card_of(mix: Mix, overlaps: Any = None) -> tuple[dict[str, Any], str, str]:
    """The card of a mix as values, page and Markdown."""
    count = len(mix.row_ids)
    values = values_of(mix, SimpleNamespace(lengths=np.full(count, 9)))
    unchecked = {"qa": f"eval.tasks.qa: {'x' * 90} {EVIL}"}
    described = describe_overlaps(overlaps, unchecked, "report")
    content = card(mix, values, Counts(rows=count, tokens=9 * count), samples(mix), described, 2048)
    return content, card_page(content, values, 2048, "tiny"), card_markdown(content)


def evil_mix(build: Build) -> Mix:
    rows = [conversation(f"{number} {EVIL}", source=EVIL) for number in range(11)]
    rows.append({"conversations": [{"from": "human", "value": "unanswered"}], "source": EVIL})
    return build(rows, None, 11)


def test_texts_and_names_stay_texts(mix_of: Build) -> None:
    _, page, text = card_of(evil_mix(mix_of))
    assert "<script" not in page
    assert "<img" not in page
    assert page.count("&lt;script&gt;alert(1)") >= 20
    assert not re.search(r'(?:src|href)\s*=\s*(?!"?#)', re.sub(r"&lt;.*?&gt;", "", page))
    table = next(line for line in text.splitlines() if line.startswith("| \\<script"))
    assert "\\*\\*bold" in table
    assert len(re.findall(r"(?<!\\)\|", table)) == 9
    assert inline("a\nb*c") == "a b\\*c"
    _, _, text = card_of(mix_of([conversation("````` here")], None, 1))
    assert re.search(r"^`{6}text$", text, re.MULTILINE), "a fence is longer than any in the text"


def test_a_card_links_to_the_runs_and_reports_that_use_its_mix(mix_of: Build, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "multirun" / "a b", seed=seed) for seed in (0, 1)]
    records = [(run, json.loads((run / "run.json").read_text())) for run in runs]
    page = tmp_path / "outputs" / "mixes" / "pydocs_1k-s0-pydocs_1" / "mix.html"
    assert find_cards(tmp_path / "outputs", [record for _, record in records]) == {}
    page.parent.mkdir(parents=True)
    page.write_text(card_of(mix_of([conversation("a")], None, 1))[1], encoding="utf-8")
    assert "not used yet" in page.read_text(encoding="utf-8")
    assert find_cards(tmp_path / "outputs", [record for _, record in records]) == {"pydocs_1k-s0": page}
    link_runs(page, [(tmp_path / "none", {}), *records[:1]])
    (runs[0].parent / "report.html").touch()
    link_runs(page, records)
    text = page.read_text(encoding="utf-8")
    links = re.findall(r'<a href="(.*?)"', text)
    assert [(page.parent / unquote(link)).resolve() for link in links] == [runs[0].parent / "report.html", *runs]
    assert "report a b</a>: <a" in text
    assert "not used yet" not in text


def test_long_turns_are_folded_and_end(mix_of: Build) -> None:
    assert folded("a" * data_card.FOLDED_AFTER)["tail"] == ""
    found = folded("a" * (data_card.MOST_CHARACTERS + 5))
    assert (len(found["head"]) + len(found["tail"]), found["cut"]) == (data_card.MOST_CHARACTERS, 5)
    _, page, _ = card_of(mix_of([conversation("word " * 100_000)], None, 1))
    assert len(page) < 150_000
    assert "further characters are not on this page" in page


def test_dropped_rows_are_listed_with_examples_and_counted_once(mix_of: Build) -> None:
    base = [conversation(number, source="alpha", score=number + 1) for number in range(5)]
    pool = [*base[:2], conversation("p1"), conversation("p1"), *base[:1], conversation("p2"), {"conversations": []}]
    base.append(conversation("b6", source="alpha", **{"<em>": 1}))
    mix = mix_of(base, [*pool, []], 7, base_rows=6)
    way = data_card.steps(mix.facts["pool"])
    assert (way[0], way[-2:]) == (("read", 8), [("eligible", 2), ("taken", 1)])
    assert sum(rows for _, rows in way[:-2]) == 2, "what is read less what is dropped is eligible"

    example = {"origin": "pool", "source": "gamma", "messages": [{"role": "user", "content": "cut me"}]}
    mix.facts["pool"] |= {"filtered": {"language": {"gamma": 3, "delta": 1}}}
    mix.facts["pool"] |= {"contaminated_rows": 2, "contaminated": {"qa": {"gamma": 2}}}
    mix.parts["pool"].examples["language"] = [example]
    found, page, text = card_of(mix)
    rows = {entry["text"]: (entry["rows"], entry["sources"]) for entry in found["dropped"] if entry["origin"] == "pool"}
    assert rows["text is in the base"] == (3, "alpha 3")
    assert rows["text is in an earlier row of the pool"][1] == "alpha 1, files 1"
    assert rows["language"][1] == "gamma 3, delta 1"
    assert rows["overlaps with an evaluation example"] == (2, "qa: gamma 2")
    assert rows["not_an_object"] == (1, "files 1")
    for line in ("cut me", "Quality scores of 5 rows: mean 3.000, median 3.000."):
        assert (line in page, line in text) == (True, True)
    assert found["unread"] == [("base", "alpha", "<em> 1")]
    assert "<li>base, alpha: &lt;em&gt; 1</li>" in page
    assert r"- base, alpha: \<em\> 1" in text


def test_near_duplicates_are_shown(tmp_path: Path) -> None:
    """Of a real mix: five of the base, five of the pool, and how many of these are near the base."""

    def near(number: int, other: int) -> dict[str, Any]:
        return conversation(" ".join(f"w{number}x{n}" for n in range(60)) + f" last {other}")

    base = write_jsonl(tmp_path / "base.jsonl", [near(0, other) for other in range(8)])
    pool = write_jsonl(tmp_path / "pool.jsonl", [near(0, 9), *(near(1, other) for other in range(8))])
    config = DataConfig(rows=2, base=files(base), pool=files(pool), near_dedup=NearDedupConfig(0.8, base=True))
    content, page, _ = card_of(build_mix(config, 0, tmp_path / "cache"))
    found = {entry["origin"]: entry for entry in content["dropped"] if "near-duplicate" in entry["text"]}
    shown = {origin: (entry["rows"], len(entry["examples"])) for origin, entry in found.items()}
    assert shown == {"base": (7, 5), "pool": (8, 5)}
    assert "near-duplicate of another row (1 of them of a row of the base)" in page


def test_of_sixty_sources_the_figure_and_the_short_text_name_the_largest(mix_of: Build) -> None:
    rows = [conversation(number, source=f"source {number % 60:02}") for number in range(120)]
    found, page, text = card_of(mix_of(rows, None, 120))
    short = card_markdown(found, rows=False)
    assert len(found["sources"]) == 60
    assert ("48 others" in page, "source 59" in text, "48 more sources are on the card." in short) == (True,) * 3
    assert "font-family: 'DejaVu" not in page, "figures have the font of the page"
    assert (text.count("| 1.7% |"), short.count("| 1.7% |")) == (60, 12)


def test_overlaps_are_on_the_card(mix_of: Build) -> None:
    shown = {"task": "qa", "example": "q3", "origin": "base", "source": "a", "words": 30, "shared": "x " * 29 + "end"}
    counts = {"qa": {f"s{number}": 10 - number for number in range(8)}}
    numbers = {"rows": 100, "overlapping": 52, "examples": {"qa": 9, "sum": 5}, "touched": {"qa": 4}}
    found = MixOverlaps(counts=counts, too_short={"sum": 3}, shown=[shown], **numbers)
    _, page, text = card_of(mix_of([conversation("a")], None, 1), found)
    assert "<td>9</td><td>4</td><td>52</td><td>52.0000%</td>" in page
    assert "| qa | 9 | 4 | 52 | 52.0000% | s0 10, s1 9" in text
    assert "fewer than 8 words are not checked: sum." in page
    for line in (
        "fewer than 8 words are not checked: sum.",
        "| qa | q3 | base, a | 30 | x x ",
        "52 rows share 13 consecutive words, or a whole shorter text, with an evaluation example",
        "Not checked against qa: ",
    ):
        assert line in text


def test_the_text_without_rows_counts_everything(mix_of: Build, tmp_path: Path) -> None:
    rows = [conversation(number, source="alpha" if number < 8 else "[beta]") for number in range(10)]
    rows.append({"conversations": [{"from": "human", "value": "unanswered"}], "source": "alpha", "lang": "en"})
    rows[0]["topic"] = rows[1]["topic"] = rows[8]["topic"] = "x"
    rows.append({"conversations": 7, "source": "alpha"})
    pool = [*rows[:3], rows[0], *(conversation(f"p{number} {'long ' * 60}", source="pool") for number in range(6))]
    pool[-1]["conversations"].insert(0, {"from": "gpt", "value": "first"})
    pool += [conversation("p1 " + "long " * 60, source="a/very-long name\n" * 20)]
    mix = mix_of(rows, pool, 14, base_rows=10)
    tokens = tokenise(mix, chatml_tokenizer(), 64, tmp_path / "cache")
    counts = tokens.counts
    assert counts.truncated == counts.without_labels == 4
    content = card(mix, values_of(mix, tokens), counts, samples(mix), describe_overlaps(None, {}, "report"), 64)
    lines = card_markdown(content, rows=False).splitlines()
    for line in (
        "| rows truncated at trainer.max\\_length=64 | 4 | 28.6% |",
        "| rows skipped: nothing left to train on | 4 | 28.6% |",
        f"| tokens cut off | {counts.tokens_cut:,} | {counts.tokens_cut / (counts.tokens + counts.tokens_cut):.1%} |",
        "- base, alpha: topic 2, lang 1",
        "- pool, alpha: topic 3",
        *("| read | 12 |", "| read | 11 |", "| − no assistant turn | 1 |", "| eligible | 6 |", "| taken | 4 |"),
        *("| − text is in the base | 4 |", "| − text is in an earlier row of the pool | 1 |"),
        *("| − not\\_a\\_list\\_of\\_turns | 1 |", "| not\\_a\\_list\\_of\\_turns | base | 1 | alpha 1 |"),
        *("| no assistant turn | base | 1 | alpha 1 |", "| leading\\_assistant\\_removed | pool | 1 | pool 1 |"),
    ):
        assert line in lines, line
    answers = (" ".join(lines).split("seeds.data=0")[1]).count("answer 1")
    assert answers == 0, "no text of a row"
    assert "answer 1" in card_markdown(content)
