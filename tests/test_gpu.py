"""Tests that need a GPU: the same bytes again, backends that learn the same, packs isolated, memory estimated."""

import os
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.whole import TORCHRUN, Workplace, curve_of, record_of
from tometune.models.machine import unsloth_installed
from tometune.models.source import tiny_folder

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
STEPS = 20
RUN = (
    *(
        "model=llama32_3b",
        "data=pydocs_1k",
        "eval=pydocs",
        "eval.limit=4",
        "eval.base=false",
        "tracking=none",
        "trainer.logging_steps=1",
    ),
    *(f"trainer.max_steps={STEPS}", "trainer.max_length=512", "trainer.tokens_per_step=4096", "trainer.micro_batch=4"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    made = Workplace(tmp_path_factory.mktemp("gpu"))
    made.env.pop("OMP_NUM_THREADS")
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights, wide enough for 4 bits and for Unsloth's kernels, with the tiny model's tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder(tmp_path_factory.mktemp("cache")))
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(place: Workplace, outputs: str, *overrides: str) -> Path:
    done = place.verb("train", *RUN, f"paths.outputs={outputs}", *overrides)
    assert done.returncode == 0, done.stderr
    return place.run_folder(outputs)


@pytest.mark.skipif(not unsloth_installed(), reason="Unsloth is not installed")
@pytest.mark.parametrize(("kind", "tolerance"), [("nf4", 0.01), ("none", 0.005), ("full", 0.01)])
def test_both_backends_learn_the_same(place, model, kind, tolerance):
    full = ("lora=none", "trainer.learning_rate=1e-4") if kind == "full" else ()
    which = (f"model.id={model}", f"model.quantization={'none' if full else kind}", *full)
    plain, fast = (
        run(place, f"{backend}-{kind}", *which, f"model.backend={backend}") for backend in ("transformers", "unsloth")
    )
    off = [abs(ours / theirs - 1) for (_, theirs), (_, ours) in zip(curve_of(plain), curve_of(fast), strict=True)]
    print(f"{kind}: losses differ by at most {max(off):.5f}, on average {sum(off) / len(off):.5f}")
    assert len(off) == STEPS
    assert max(off) <= tolerance
    assert curve_of(fast)[-1][1] < curve_of(fast)[0][1]
    assert record_of(fast)["train"]["attention"] == "unsloth"
    assert record_of(plain)["train"]["attention"] in ("varlen", "flex", "flash_attention_2")
    for name in ("tokens", "trainable_parameters"):
        assert record_of(plain)["train"][name] == record_of(fast)["train"][name]


def test_lengths_keep_conversations_apart_as_a_mask_does(place, model):
    which = (f"model.id={model}", "model.quantization=none", "model.backend=transformers")
    by_lengths = run(place, "lengths", *which)
    by_mask = run(place, "mask", *which, "model.attn_implementation=eager", "trainer.micro_batch=1")
    assert record_of(by_mask)["train"]["attention"] == "eager"
    for (_, mine), (_, theirs) in zip(curve_of(by_lengths), curve_of(by_mask), strict=True):
        assert mine == pytest.approx(theirs, rel=0.005)


@pytest.mark.parametrize("lora", ["default", "none"])
def test_the_micro_batch_that_fits_is_found_and_its_memory_estimated(place, model, lora):
    which = (f"model.id={model}", "model.quantization=none", "model.backend=transformers", f"lora={lora}")
    train = record_of(run(place, f"auto-{lora}", *which, "trainer.micro_batch=auto"))["train"]
    assert train["effective_batch"] == train["micro_batch"] == 8
    assert not train["gradient_checkpointing"]
    assert train["peak_memory_bytes"] == pytest.approx(train["estimated_memory_bytes"], rel=0.25)
    assert list((place.folder / "home" / "tometune" / "micro_batches").iterdir())


TRANSFORMERS, UNSLOTH = "model.backend=transformers", "model.backend=unsloth"
UNPACKED = ("trainer.packing=false", "trainer.conversations_per_step=8")
WAYS = {
    "graph": (TRANSFORMERS, "model.quantization=none", "trainer.cuda_graph=true"),
    "eager": (TRANSFORMERS, "model.quantization=none", "trainer.cuda_graph=false"),
    "nf4": (TRANSFORMERS, "model.quantization=nf4"),
    "fp8": (TRANSFORMERS, "model.quantization=none", "model.compute=fp8"),
    "fp8_nf4": (TRANSFORMERS, "model.quantization=nf4", "model.compute=fp8"),
    "fp8_backward": (TRANSFORMERS, "model.quantization=none", "model.compute=fp8_backward"),
    "fp8_backward_nf4": (TRANSFORMERS, "model.quantization=nf4", "model.compute=fp8_backward"),
    "fp8_eager": (TRANSFORMERS, "model.quantization=none", "model.compute=fp8", "trainer.cuda_graph=false"),
    "fp8_recomputed": (
        *(TRANSFORMERS, "model.quantization=none", "model.compute=fp8"),
        "trainer.gradient_checkpointing=true",
    ),
    "padded": (TRANSFORMERS, "model.quantization=none", *UNPACKED),
    "recomputed": (TRANSFORMERS, "model.quantization=none", "trainer.gradient_checkpointing=true"),
    "full": (TRANSFORMERS, "model.quantization=none", "lora=none", "trainer.learning_rate=1e-4"),
    "unsloth": (UNSLOTH, "model.quantization=none"),
    "unsloth_nf4": (UNSLOTH, "model.quantization=nf4"),
    "unsloth_padded": (UNSLOTH, "model.quantization=nf4", *UNPACKED),
}
"""Ways to train, each of which has to give the same bytes again."""


def digests(folder: Path) -> dict[str, str]:
    files = [*folder.glob("adapter/*.safetensors"), *folder.glob("model/*.safetensors"), *folder.glob("eval/*/*.jsonl")]
    assert len(files) >= 2
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_command_gives_the_same_bytes(place, model, tmp_path, way):
    """Also with the compilers' caches cold and then warm, and after the process was killed between two checkpoints."""
    if way.startswith("unsloth") and not unsloth_installed():
        pytest.skip("Unsloth is not installed")
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"), "TRITON_CACHE_DIR": str(tmp_path / "triton")}
    place.env |= caches
    command = (f"model.id={model}", *WAYS[way], "trainer.save_steps=4")
    first, second = (run(place, f"{way}-{name}", *command) for name in ("cold", "warm"))
    killed = tmp_path / "killed"
    arguments = [sys.executable, "-m", "tometune.train", *RUN, *command, f"paths.outputs={killed}"]
    process = subprocess.Popen(arguments, cwd=place.folder, env=place.env, start_new_session=True)
    while process.poll() is None and not list(killed.glob("*/checkpoints/checkpoint-8")):
        time.sleep(0.02)
    assert process.poll() is None, "it ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    resumed = run(place, str(killed), *command)
    assert "resuming from checkpoint-" in (resumed / "train.log").read_text()
    expected = digests(first)
    print(f"{way}: {expected}")
    assert record_of(first)["train"]["deterministic"]
    assert digests(second) == expected
    assert digests(resumed) == expected


@pytest.mark.parametrize("way", ["graph", "nf4"])
def test_a_later_run_of_a_sweep_is_the_same_as_one_alone(place, model, way):
    """It uses the base model that the first run of the process loaded."""
    command = (f"model.id={model}", *WAYS[way])
    alone = run(place, f"{way}-alone", *command, "seed=1")
    folder = place.folder / f"{way}-sweep"
    done = place.verb("train", "-m", *RUN, *command, "seed=0,1", "sweep.name=x", f"paths.multirun={folder}")
    assert done.returncode == 0, done.stderr
    (later,) = folder.glob("x/*-s1-*")
    assert done.stderr.count("is loaded already") == 1, done.stderr
    assert digests(later) == digests(alone)


def test_a_chat_with_a_seed_gives_the_same_answers(place, model):
    """In two processes, at a temperature above 0; another seed gives others."""
    made = run(place, "chat", f"model.id={model}", TRANSFORMERS, "model.quantization=none")
    saved = []
    for number, seed in enumerate((1, 1, 2)):
        chat = (sys.executable, "-m", "tometune.chat", f"run={made}", "ui=terminal")
        typed = f"/seed {seed}\n/temperature 1\n/tokens 48\nWhat is a list?\nAnd a set?\n/save {number}.json\n"
        subprocess.run(chat, input=typed, text=True, cwd=place.folder, env=place.env, check=True, capture_output=True)
        saved.append((place.folder / f"{number}.json").read_bytes())
    print(f"chat: {sha256(saved[0]).hexdigest()}")
    assert saved[0] == saved[1]
    assert saved[0] != saved[2]


two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def start_two(place: Workplace, outputs: str, *overrides: str) -> "subprocess.Popen[str]":
    command = [*TORCHRUN, "-m", "tometune.train", *RUN, f"paths.outputs={outputs}", *overrides]
    return subprocess.Popen(command, cwd=place.folder, env=place.env, text=True, stderr=subprocess.PIPE)


def run_two(place: Workplace, outputs: str, *overrides: str) -> Path:
    process = start_two(place, outputs, *overrides)
    _, stderr = process.communicate(timeout=500)
    assert process.returncode == 0, stderr
    return place.run_folder(outputs)


@two_gpus
@pytest.mark.parametrize("way", ["graph", "nf4", "eager", "padded", "full"])
def test_two_gpus_learn_what_one_does_and_give_the_same_bytes(place, model, tmp_path, way):
    """Each with a cache of its own, so that none copies the base model's answers."""
    command = (f"model.id={model}", *WAYS[way], "eval.base=true", "eval.batch_size=2", "trainer.micro_batch=2")
    one = run(place, f"{way}-one", *command, f"paths.cache={tmp_path / 'one'}")
    both, again = (
        run_two(place, f"{way}-{name}", *command, f"paths.cache={tmp_path / name}") for name in ("both", "again")
    )
    off = [abs(ours / theirs - 1) for (_, ours), (_, theirs) in zip(curve_of(both), curve_of(one), strict=True)]
    print(f"{way}: losses of two GPUs and one differ by at most {max(off):.5f}: {digests(both)}")
    assert len(off) == STEPS
    assert max(off) <= 0.005
    for name in ("steps", "effective_batch", "tokens", "trained_tokens"):
        assert record_of(both)["train"][name] == record_of(one)["train"][name], name
    assert digests(again) == digests(both)
    base = [path.relative_to(one) for path in one.glob("eval/base/*.jsonl")]
    assert base
    assert [(both / path).read_bytes() for path in base] == [(one / path).read_bytes() for path in base]


@two_gpus
@pytest.mark.parametrize("victim", ["0", "1"])
def test_two_gpus_resume_after_either_process_was_killed(place, model, victim):
    command = (f"model.id={model}", *WAYS["nf4"], "trainer.save_steps=4")
    expected = digests(run_two(place, f"whole-{victim}", *command))
    outputs = f"killed-{victim}"
    process = start_two(place, outputs, *command)
    while process.poll() is None and not list(place.folder.glob(f"{outputs}/*/checkpoints/checkpoint-8")):
        time.sleep(0.02)
    assert process.poll() is None, "it ended before it could be killed"
    (killed,) = (child for child in psutil.Process(process.pid).children() if child.environ().get("RANK") == victim)
    killed.send_signal(signal.SIGKILL)
    process.communicate(timeout=100)  # torchrun ends the other one
    assert process.returncode != 0
    resumed = run_two(place, outputs, *command)
    assert "resuming from checkpoint-" in (resumed / "train.log").read_text()
    assert record_of(resumed)["attempts"] == 2
    assert digests(resumed) == expected
