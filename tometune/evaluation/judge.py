"""The judge (`eval.judge`): another model compares the tuned model's answers with the base model's.

Judges prefer a position, so each pair is judged in both orders, and an answer wins only if it wins both (Zheng et al.
2023, MT-Bench, arXiv:2306.05685, section 3.4). They prefer longer answers, too, so lengths are reported.
"""

import json
import logging
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx

from tometune.common.errors import UserError, one_line
from tometune.common.progress import progress
from tometune.common.seeding import stream
from tometune.config.eval import JudgeConfig
from tometune.evaluation.metrics import averaged
from tometune.evaluation.results import read_scores, write_result
from tometune.evaluation.tasks import SHUFFLE_SEED, Task

log = logging.getLogger(__name__)

KEY = "TOMETUNE_JUDGE_KEY"  # environment variable with the API key, if the endpoint needs one
TIMEOUT = 120.0  # seconds for one reply
MANY_LOST = 0.2  # share of replies without a verdict that is worth a warning
LONGEST_WAIT = 300.0  # seconds in all that a run waits because the endpoint asked for it (status 429)
FAILURES = 6  # requests in a row without a reply, after which no more are sent
PROMPT = """Below are a request and two answers to it. Decide which answer is better: more correct, more helpful, closer
to what was asked. Their order means nothing, and a longer answer is not better because of its length.

[Request]\n{request}\n\n[Answer A]\n{a}\n\n[Answer B]\n{b}

Reply with [[A]], [[B]] or [[tie]], and nothing else."""
VERDICT = re.compile(r"\[\[\s*(A|B|tie)\s*\]\]|^\W*(?:answer\s+)?(A|B|tie)\W*$", re.IGNORECASE)


class Judge:
    """The endpoint, with a limit on requests."""

    def __init__(self, config: JudgeConfig) -> None:
        url, key = str(config.url), os.environ.get(KEY)
        local = httpx.URL(url).host in ("localhost", "127.0.0.1", "::1")  # never through a proxy
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.client = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT, trust_env=not local)
        self.config, self.calls, self.failures, self.problem = config, 0, 0, f"eval.judge.calls={config.calls}"
        self.waited = 0.0

    @property
    def done(self) -> bool:
        """Whether no more requests are sent."""
        return self.calls >= self.config.calls or self.failures >= FAILURES

    def ask(self, text: str) -> str | None:
        """Return the reply; asks again once. None if there is none."""
        messages = [{"role": "user", "content": text}]
        body = {"model": self.config.model, "messages": messages, "temperature": 0, "max_tokens": 256}
        for _ in range(2):
            if self.done:
                break
            self.calls += 1
            try:
                reply = str(self._post(body).json()["choices"][0]["message"]["content"] or "")
                self.failures = 0
                return reply
            except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
                self.failures, self.problem = self.failures + 1, f"{type(error).__name__}: {one_line(error)}"[:200]
        return None

    def _post(self, body: dict[str, Any]) -> httpx.Response:
        """Return the response; waits as long as an endpoint asks that limits the rate of requests."""
        while True:
            response = self.client.post("chat/completions", json=body)
            seconds = _seconds_asked(response.headers.get("retry-after", ""))
            if response.status_code != 429 or self.waited + seconds > LONGEST_WAIT:
                break
            if not self.waited:
                log.info("eval.judge: the endpoint limits the rate of requests; waiting as long as it asks")
            self.waited += seconds
            time.sleep(seconds)
        if response.is_error:  # the text names what the endpoint refuses
            raise ValueError(f"status {response.status_code}, {response.text[:150]}")
        return response

    def compare(self, request: str, base: str, tuned: str) -> dict[str, Any] | None:
        """Return scores, a verdict per order (`base`, `tuned`, `tie`, `none`) and lengths; None if a reply is missing.

        Equal answers are a tie without verdicts, and are not sent.
        """
        if self.done:  # with equal answers alone, ties would be too many
            return None
        verdicts = []
        orders = (("base", base, "tuned", tuned), ("tuned", tuned, "base", base)) if base != tuned else ()
        for a, first, b, second in orders:
            reply = self.ask(PROMPT.format(request=request, a=first, b=second))
            if reply is None:
                return None
            found = {(match[1] or match[2]).lower() for match in VERDICT.finditer(reply.rpartition("</think>")[2])}
            verdicts.append({"a": a, "b": b, "tie": "tie"}[found.pop()] if len(found) == 1 else "none")
        scores = {"win": {"tuned tuned": 1.0, "base base": 0.0}.get(" ".join(verdicts), 0.5)}
        if verdicts:
            scores["agreement"] = float(verdicts[0] == verdicts[1] != "none")
        words = {"base": len(base.split()), "tuned": len(tuned.split())}
        return {"scores": scores, "verdicts": verdicts, "words": words}


def _seconds_asked(retry_after: str) -> float:
    """Return the seconds to wait, at least 1, by a header Retry-After: seconds or a date; 10 if it is neither."""
    seconds = 10.0
    with suppress(ValueError):
        if retry_after.strip().isdigit():
            seconds = float(retry_after)
        elif retry_after:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
    return max(1.0, seconds)


def judge_answers(folder: Path, tasks: Sequence[Task], config: JudgeConfig) -> dict[str, Any]:
    """Judge the answers in `<folder>/eval`; writes `eval/judge/<task>.jsonl`, returns figures by task and over tasks.

    `eval.judge.calls` is shared equally among the tasks; the pairs are a fixed draw, the same in every run. A pair that
    was judged before is not sent again. What goes wrong costs one warning and never the run.
    """
    try:
        names, judge = averaged(task.name for task in tasks), Judge(config)
        judged, share = [task for task in tasks if task.name in names], config.calls // (2 * len(names))
        log.info("eval.judge: sends prompts and answers of up to %d examples per task to %s", share, config.url)
        found = {task.name: figures for task in judged if (figures := _judge_task(folder, task, share, judge))}
        total, done = sum(len(task.examples) for task in judged), sum(each["examples"] for each in found.values())
        if done < total:
            log.warning("eval.judge: %d of %d pairs are judged (%s)", done, total, judge.problem)
        lost = sum(each["no_verdict"] for each in found.values())
        if lost > MANY_LOST * 2 * sum(each["examples"] - each["equal_answers"] for each in found.values()):
            log.warning("eval.judge: %d replies have no verdict and count as ties; is the model able to judge?", lost)
        win = fmean(figures["win"] for figures in found.values()) if found else None
        return {"model": config.model, "calls": judge.calls, "win": win, "tasks": found}
    except Exception as error:
        log.warning("eval.judge: off (%s: %s); the run continues", type(error).__name__, one_line(error))
        return {}


def _judge_task(folder: Path, task: Task, most: int, judge: Judge) -> dict[str, Any] | None:
    """Judge the pairs of a task until `most` of them differ and had to be sent; None if none could be judged."""
    base, tuned = (read_scores(folder / "eval" / stage / f"{task.name}.jsonl") for stage in ("base", "tuned"))
    path = folder / "eval" / "judge" / f"{task.name}.jsonl"
    known = {}
    with suppress(UserError):  # none yet, or broken
        known = {line.get("pair"): line for line in read_scores(path).values()}
    lines, pairs, sent = [], 0, 0
    order = stream(SHUFFLE_SEED, "judged pairs").permutation(len(task.examples)).tolist()
    with progress(f"judge: {task.name}", min(most, len(order))) as advance:
        try:
            for example in (task.examples[index] for index in order):
                if sent >= most:
                    break
                request = "\n\n".join(f"{message['role']}: {message['content']}" for message in example.messages)
                answers = base[example.id]["prediction"], tuned[example.id]["prediction"]
                pairs, sent = pairs + 1, sent + (answers[0] != answers[1])
                made_from = [PROMPT, judge.config.url, judge.config.model, request, *answers]
                pair = sha256(json.dumps(made_from).encode()).hexdigest()[:20]
                found = known.get(pair) or judge.compare(request, *answers)
                lines += [{"id": example.id, **found, "pair": pair}] if found else []
                advance(int(answers[0] != answers[1]))
        finally:  # also what was judged before a stop is not sent again
            if any(line["verdicts"] for line in lines) or (lines and len(lines) == pairs):
                figures = _figures(lines) | {"no_reply": pairs - len(lines)}
                key = {"url": judge.config.url, "model": judge.config.model}
                write_result(path, key, [json.dumps(line) for line in lines], figures)
    if not any(line["verdicts"] for line in lines) and len(lines) < max(pairs, 1):
        return None
    log.info("judge %s: %s", task.name, figures)
    return figures


def _figures(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    sent = [line for line in lines if line["verdicts"]]
    decided = [line for line in sent if line["scores"]["win"] != 0.5 and len(set(line["words"].values())) == 2]
    longer = [(line["words"]["tuned"] > line["words"]["base"]) == line["scores"]["win"] for line in decided]
    return {
        "win": fmean(line["scores"]["win"] for line in lines),
        "agreement": fmean(line["scores"]["agreement"] for line in sent) if sent else None,
        "longer_preferred": fmean(longer) if longer else None,  # share of the pairs with a winner
        "words": {stage: fmean(line["words"][stage] for line in lines) for stage in ("base", "tuned")},
        "examples": len(lines),
        "equal_answers": len(lines) - len(sent),
        "no_verdict": sum(line["verdicts"].count("none") for line in sent),  # replies; they count as ties
    }
