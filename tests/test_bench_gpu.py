"""scripts/bench_gpu.py: its arithmetic with known answers, its report, and a rehearsal of two contenders on the CPU."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import bench_gpu  # noqa: E402
import bench_gpu_report as report  # noqa: E402
from bench_gpu_contenders import overrides  # noqa: E402
from bench_gpu_model import SHAPES  # noqa: E402

STEPS = [
    {"tokens": 900.0, "tokens_per_second": 1.0, "padded_tokens_per_second": 1.0},
    {"tokens": 100.0, "tokens_per_second": 100.0, "padded_tokens_per_second": 200.0},
    {"tokens": 300.0, "tokens_per_second": 300.0, "padded_tokens_per_second": 300.0},
    {"tokens": 200.0, "tokens_per_second": 200.0, "padded_tokens_per_second": 400.0},
]
FACTS = {"parameters": 1000, "matmul_flops": 8e6, "base_mean_tokens": 200.0, "pool_mean_tokens": 100.0}


def test_parameters_of_the_published_models() -> None:
    assert report.parameters(SHAPES["llama32_3b"]) == 3_212_749_824
    assert report.parameters(SHAPES["smollm2_135m"]) == 134_515_008


def test_steps_after_the_warm_up_count() -> None:
    found = report.summary(STEPS, 1)
    assert found["steps"] == 3
    assert found["tokens_per_second"] == {"median": 200.0, "min": 100.0, "max": 300.0}
    assert found["overall_tokens_per_second"] == pytest.approx(600 / 3)  # a second each
    assert found["padding_share"] == pytest.approx(1 - 600 / 900)


def test_steps_without_tokens_weigh_the_same() -> None:
    bare = [{key: value for key, value in step.items() if key != "tokens"} for step in STEPS[1:3]]
    assert report.summary(bare, 0)["overall_tokens_per_second"] == pytest.approx(150)  # 1/100 and 1/300


def test_mfu_and_the_cost_of_a_table() -> None:
    assert report.mfu(200, 1000, 8e6) == pytest.approx(0.1)
    tokens = report.table_tokens(200, 100)
    assert tokens == 3 * (3 * 100_000 * 200 + 300_000 * 100)
    assert report.table_hours(1000, 3.6e6, 400) == pytest.approx(1 + 1)
    done = report.finish({"steps": STEPS, "seconds_to_first_step": 0.0, "peak_memory_gb": 1.0}, FACTS, 1)
    assert done["mfu"] == pytest.approx(0.1)
    assert done["table_hours"] == pytest.approx(tokens / 200 / 3600)


def shown(recorded: dict[str, Any]) -> str:
    console = Console(width=bench_gpu.WIDTH, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    for line in report.lines(recorded):
        console.print(line, soft_wrap=isinstance(line, str))
    return console.export_text()


def test_report_of_a_recorded_file() -> None:
    steps = {"steps": STEPS, "seconds_to_first_step": 42.0, "peak_memory_gb": 12.34}
    recorded = {
        "circumstances": {"gpu": "H100"},
        "facts": FACTS,
        "contenders": {
            "tometune_transformers": report.finish(steps, FACTS, 1),
            "trl_liger": {"error": "ModuleNotFoundError: No module named 'liger_kernel'"},
        },
        "generation": {
            "generate_tometune": {"runs": [{"batch": 128, "tokens_per_second": 1532.4, "peak_memory_gb": 20.0}]},
            "generate_plain": {"runs": [{"batch": 128, "error": "CUDA out of memory"}]},
        },
    }
    text = shown(json.loads(json.dumps(recorded)))
    row = next(line for line in text.splitlines() if line.startswith("tometune_transformers"))
    assert row.split()[1:9] == ["200", "100", "300", "200", "33.3%", "10.0%", "12.3", "42"]
    assert "trl_liger: ModuleNotFoundError: No module named 'liger_kernel'" in text
    assert "generate_plain, batch 128: CUDA out of memory" in text
    assert "1,532" in text
    assert "gpu: H100" in text
    assert "…" not in text


def test_tometune_is_called_with_its_defaults(tmp_path: Path) -> None:
    settings = {"model": "/m", "base": "/b", "pool": "/p", "rows": 9, "gpu": True}
    given = overrides("unsloth", settings, tmp_path, 48)
    assert {"model.backend=unsloth", "trainer.max_steps=48", "data.base.rows=3"} <= set(given)
    trainer = [each for each in given if each.startswith(("trainer.", "model.", "lora."))]
    assert [each.partition("=")[0] for each in trainer] == [
        *("model.id", "model.backend"),
        *("trainer.max_steps", "trainer.logging_steps", "trainer.save_steps"),
    ]


@pytest.mark.nightly
@pytest.mark.whole
def test_rehearsal(clean_env: dict[str, str], tmp_path: Path) -> None:
    hidden = {**clean_env, "CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(tmp_path), "PATH": ""}  # no nvidia-smi
    sizes = ["--rows", "300", "--steps", "3", "--warmup", "1", "--batches", "2", "--new-tokens", "8"]
    names = ["tometune_transformers", "trl_peft", "generate_tometune"]
    chosen = ["--rehearse", "--model-shape", "tiny", "--contenders", ",".join(names), "--json", "found.json"]
    command = [sys.executable, SCRIPTS / "bench_gpu.py"]
    done = subprocess.run(command, env=hidden, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "bench_gpu: there is no GPU here; --rehearse tries the script out on a CPU\n"
    done = subprocess.run([*command, *sizes, *chosen], env=hidden, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert [*found["contenders"], *found["generation"]] == names, done.stderr
    for each in found["contenders"].values():
        assert "error" not in each, each
        assert len(each["raw_steps"]) == 4
        assert each["tokens_per_second"]["min"] > 0
        assert each["seconds_to_first_step"] > 0
        assert 0 <= each["padding_share"] < 1
    assert found["generation"]["generate_tometune"]["runs"][0]["tokens_per_second"] > 0
    assert 0 < found["facts"]["pool_mean_tokens"] < 256
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("tometune-bench")] == []
