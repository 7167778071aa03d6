"""One measurement of bench_gpu.py, in its own process: `bench_gpu_contenders.py NAME SETTINGS`.

SETTINGS is a JSON file; the last line on stdout is the result as JSON.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from bench_gpu_model import data_overrides, make_model, make_rows, read_rows
from bench_gpu_recipes import RECIPES, train

Result = dict[str, Any]
Answers = Callable[[Any, Any, int], AbstractContextManager[Callable[[list[Any]], float]]]

TOMETUNE = {
    "tometune_unsloth": ["model.backend=unsloth"],
    "tometune_transformers": ["model.backend=transformers"],
    "tometune_warm": ["model.backend=transformers"],
    "tometune_fp8": ["model.backend=transformers", "model.compute=fp8"],
    "tometune_fp8_backward": ["model.backend=transformers", "model.compute=fp8_backward"],
    "tometune_fp8_warm": ["model.backend=transformers", "model.compute=fp8"],
    "tometune_bf16": ["model.backend=transformers"],
    "tometune_8b": ["model.backend=transformers"],
}
"""The contenders that are tometune itself, and what differs between them."""

WARM = {"tometune_warm": "tometune_transformers", "tometune_fp8_warm": "tometune_fp8"}
"""Contenders that repeat another one with its caches (the mix, tokens, compiled kernels).

They show the time to the first step of a second start.
"""

SETTINGS: dict[str, Result] = {
    "tometune_bf16": {"storage": "bf16"},
    "tometune_8b": {"storage": "bf16", "shape": "llama3_8b", "max_length": 4096},
}
"""Contenders with settings of their own, whatever the command line says."""

LONGEST_PROMPT = 1792
"""Tokens, as in conf/eval."""

RATES = ("tokens_per_second", "padded_tokens_per_second")

TOLD = ("training:", "micro-batch:", "attention over packs:")
"""Beginnings of the log lines that describe the content of a step."""


def tometune(name: str, settings: Result) -> Result:
    """Run `python -m tometune.train` with its defaults until its last step is logged, and read its curves.

    What would come after (the adapter, the scores) is not measured, so the process is ended there.
    """
    folder = Path(settings["folder"]) / name
    folder.mkdir()
    last = settings["warmup"] + settings["steps"]
    command = [sys.executable, "-m", "tometune.train", *overrides(TOMETUNE[name], settings, folder, last)]
    filled = folder.with_name(WARM.get(name, name))
    environment = {**os.environ, "TOMETUNE_CACHE": str(filled / "cache")}
    started = time.time()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            first = _until(process, folder, 1) - started
            _until(process, folder, last)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # and the process that trains under Unsloth
            process.wait()
    lines = [line for line in _lines(folder) if line["step"] <= last]
    before = [0, *(line["step"] for line in lines)]
    text = (folder / "log").read_text(encoding="utf-8", errors="replace").splitlines()
    return {
        "steps": [
            {"steps": line["step"] - start, **{key: line[key] for key in RATES}}
            for start, line in zip(before, lines, strict=False)
        ],
        "seconds_to_first_step": first,
        "peak_memory_gb": max(line["peak_memory_gb"] for line in lines),
        **{key: lines[-1][key] for key in ("loss", "grad_norm")},
        "log": [line for line in text if any(begin in line for begin in TOLD)],
    }


def overrides(choices: list[str], settings: Result, folder: Path, steps: int) -> list[str]:
    """Return the command's overrides: everything of tometune's default stays but the model, the data and the length."""
    changed = [
        "model=llama32_3b",
        f"model.id={settings['model']}",
        *choices,
        *data_overrides(settings),
        f"trainer.max_steps={steps}",
        f"trainer.logging_steps={settings['logging_steps']}",
        "trainer.save_steps=1000000",
        "eval=pydocs",
        "eval.base=false",
        "eval.limit=1",
        "tracking=none",
        f"paths.outputs={folder / 'outputs'}",
    ]
    length = [] if settings["max_length"] == 2048 else [f"trainer.max_length={settings['max_length']}"]
    sixteen = [] if settings["storage"] == "nf4" else ["model.quantization=none"]
    small = sixteen if settings["gpu"] else ["model.quantization=none", "model.precision=fp32"]
    short = ["trainer.warmup_steps=0"] if steps <= 5 else []  # the default's 5 would not end within the run
    return [*changed, *length, *small, *short, *settings.get("overrides", [])]


def _lines(folder: Path) -> list[Result]:
    """Return the whole lines of the run's curves."""
    text = "".join(path.read_text(encoding="utf-8") for path in folder.glob("outputs/*/metrics.jsonl"))
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _until(process: "subprocess.Popen[bytes]", folder: Path, step: int) -> float:
    """Wait until this step is logged; returns when."""

    def logged() -> bool:
        return any(line["step"] >= step for line in _lines(folder))

    while not logged():
        if process.poll() is not None and not logged():
            text = (folder / "log").read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(f"tometune.train ended with status {process.returncode}\n{text[-3000:].strip()}")
        time.sleep(0.05)
    return time.time()


def matmul(_: Result) -> Result:
    """Measure the FLOP/s of an 8192³ product in bfloat16: the median of 20 after 10."""
    import torch

    size, seconds = 8192, []
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _round in range(30):
        torch.cuda.synchronize()
        began = time.perf_counter()
        left @ right
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return {"matmul_flops": 2 * size**3 / sorted(seconds[10:])[10], "gpu": torch.cuda.get_device_name()}


def generation(answers: Answers, settings: Result, profiled: bool = False) -> Result:
    """Measure generated tokens/s, in bfloat16, batch by batch; the second of two rounds counts.

    With `profiled`, a third round of each batch size is recorded, which slows down the batch sizes after it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loading = {"dtype": torch.bfloat16, "device_map": {"": 0}} if settings["gpu"] else {"dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(settings["model"], attn_implementation="sdpa", **loading).eval()
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    conversations = [row["messages"][:1] for row in read_rows(settings) if row["messages"][0]["role"] == "user"]
    new: int = settings["new_tokens"]
    runs: list[Result] = []
    for batch in settings["batches"]:
        try:
            with answers(model, tokenizer, new) as answer:
                speeds = [answer(conversations[:batch]) for _ in range(2)]
                peak = torch.cuda.max_memory_allocated() / 1e9 if settings["gpu"] else 0.0
                kernels = {"profile": _profile(answer, conversations[:batch], settings["gpu"])} if profiled else {}
            speed = {"tokens_per_second": speeds[1], "first": speeds[0], "peak_memory_gb": peak}
            runs.append({"batch": batch, **speed, **kernels})
        except (RuntimeError, ValueError) as error:
            runs.append({"batch": batch, "error": str(error).strip().splitlines()[0]})
    return {"runs": runs}


def _profile(answer: Callable[[list[Any]], float], conversations: list[Any], gpu: bool) -> Result:
    """Return the time of one round (a "step") by kind of kernel, in milliseconds."""
    from profile_step import summary
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as recorded:
        began = time.perf_counter()
        answer(conversations)
        seconds = time.perf_counter() - began
    return summary(recorded.events(), seconds, steps=1, gpu=gpu)


@contextmanager
def _plain_answers(model: Any, tokenizer: Any, new: int) -> Iterator[Callable[[list[Any]], float]]:
    """Yield a function that answers a padded batch with `generate` and returns tokens/s."""
    import torch

    tokenizer.padding_side = "left"

    def answer(conversations: list[Any]) -> float:
        texts = [
            tokenizer.apply_chat_template(each, add_generation_prompt=True, tokenize=False) for each in conversations
        ]
        how = {"return_tensors": "pt", "padding": True, "truncation": True, "max_length": LONGEST_PROMPT}
        inputs = tokenizer(texts, **how).to(model.device)
        began = time.perf_counter()
        with torch.inference_mode():
            model.generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return len(conversations) * new / (time.perf_counter() - began)

    yield answer


@contextmanager
def _tometune_answers(model: Any, tokenizer: Any, new: int) -> Iterator[Callable[[list[Any]], float]]:
    """Yield a function that answers with the engine that the evaluation would choose, built once for all batches."""
    from tometune.config.eval import EngineKind
    from tometune.evaluation.engines import engine_for
    from tometune.evaluation.generation import generate

    with engine_for(EngineKind("auto"), model, LONGEST_PROMPT + new) as engine:
        print("engine:", engine.name, file=sys.stderr)

        def answer(conversations: list[Any]) -> float:
            began = time.perf_counter()
            done = generate(model, tokenizer, conversations, new, len(conversations), LONGEST_PROMPT, engine=engine)
            return sum(each.tokens for each in done.answers) / (time.perf_counter() - began)

        yield answer


def build(settings: Result) -> Result:
    """Make the model of a shape."""
    make_model(settings["shape"], Path(settings["model"]))
    return {}


WORK: dict[str, Callable[[Result], Result]] = {
    "model": build,
    "rows": make_rows,
    "matmul": matmul,
    "generate_tometune": lambda settings: generation(_tometune_answers, settings),
    "generate_profiled": lambda settings: generation(_tometune_answers, settings, profiled=True),
    "generate_plain": lambda settings: generation(_plain_answers, settings),
    **{name: lambda settings, name=name: tometune(name, settings) for name in TOMETUNE},  # type: ignore[misc]
    **{name: lambda settings, name=name: train(name, settings) for name in RECIPES},  # type: ignore[misc]
}

if __name__ == "__main__":
    chosen, file = sys.argv[1:]
    print("\n" + json.dumps(WORK[chosen](json.loads(Path(file).read_text(encoding="utf-8")))), flush=True)
