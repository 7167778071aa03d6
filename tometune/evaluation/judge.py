"""The judge (`eval.judge`): another model compares the tuned model's answers with the base model's.

Judges prefer a position, so each pair is judged in both orders, and an answer wins only if it wins both (Zheng et al.
2023, MT-Bench, arXiv:2306.05685, section 3.4). They prefer longer answers, too, so lengths are reported.
"""

import json
import logging
import os
import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx

from tometune.common.errors import one_line
from tometune.common.progress import progress
from tometune.common.seeding import stream
from tometune.config.eval import JudgeConfig
from tometune.evaluation.metrics import averaged
from tometune.evaluation.results import read_result, read_scores, write_result
from tometune.evaluation.tasks import SHUFFLE_SEED, Task

log = logging.getLogger(__name__)

KEY = "TOMETUNE_JUDGE_KEY"  # environment variable with the API key, if the endpoint needs one
TIMEOUT = 120.0  # seconds for one reply
MANY_LOST = 0.2  # share of replies without a verdict that is worth a warning
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
                response = self.client.post("chat/completions", json=body)
                if response.is_error:  # the text names what the endpoint refuses
                    raise ValueError(f"status {response.status_code}, {response.text[:150]}")
                reply = str(response.json()["choices"][0]["message"]["content"] or "")
                self.failures = 0
                return reply
            except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
                self.failures, self.problem = self.failures + 1, f"{type(error).__name__}: {one_line(error)}"[:200]
        return None

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


def judge_answers(folder: Path, tasks: Sequence[Task], config: JudgeConfig) -> dict[str, Any]:
    """Judge the answers in `<folder>/eval`; writes `eval/judge/<task>.jsonl`, returns figures by task and over tasks.

    `eval.judge.calls` is shared equally among the tasks; the pairs are a fixed draw, the same in every run. What goes
    wrong costs one warning and never the run.
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
    """Judge up to `most` pairs, unless the same ones were all judged before; None if none could be."""
    base, tuned = (read_scores(folder / "eval" / stage / f"{task.name}.jsonl") for stage in ("base", "tuned"))
    pairs = []
    for index in stream(SHUFFLE_SEED, "judged pairs").permutation(len(task.examples))[:most].tolist():
        example = task.examples[index]
        request = "\n\n".join(f"{message['role']}: {message['content']}" for message in example.messages)
        pairs.append((example.id, (request, base[example.id]["prediction"], tuned[example.id]["prediction"])))
    content = sha256(json.dumps([PROMPT, pairs]).encode()).hexdigest()
    key = {"url": judge.config.url, "model": judge.config.model, "pairs": content, "judged": len(pairs)}
    path = folder / "eval" / "judge" / f"{task.name}.jsonl"
    figures = read_result(path, key)
    if figures is None:
        lines = []
        with progress(f"judge: {task.name}", len(pairs)) as advance:
            for name, pair in pairs:
                found = judge.compare(*pair)
                lines += [] if found is None else [{"id": name, **found}]
                advance(1)
        if not lines or (len(lines) < len(pairs) and not any(line["verdicts"] for line in lines)):
            return None
        figures = _figures(lines) | {"no_reply": len(pairs) - len(lines)}
        write_result(path, key | {"judged": len(lines)}, [json.dumps(line) for line in lines], figures)
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
