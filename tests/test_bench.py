"""scripts/bench.py and bench_gpu.py: their arithmetic with known answers, and both at a tiny size on the CPU."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import bench_gpu  # noqa: E402
import bench_gpu_report as report  # noqa: E402
from bench_gpu_contenders import TOMETUNE, overrides  # noqa: E402
from bench_gpu_model import SHAPES  # noqa: E402

STEPS = [
    {"tokens": 900.0, "tokens_per_second": 1.0, "padded_tokens_per_second": 1.0},
    {"tokens": 100.0, "tokens_per_second": 100.0, "padded_tokens_per_second": 200.0},
    {"tokens": 300.0, "tokens_per_second": 300.0, "padded_tokens_per_second": 300.0},
    {"tokens": 200.0, "tokens_per_second": 200.0, "padded_tokens_per_second": 400.0},
]
SETTINGS_OF_A_RUN = {
    **{"model": "/m", "base": "/b", "pool": "/p", "rows": 9, "gpu": True},
    **{"storage": "nf4", "max_length": 2048, "logging_steps": 1},
}


def test_speed_is_of_the_steps_after_the_warm_up():
    found = report.summary(STEPS, 1)
    assert found["steps"] == 3
    assert found["tokens_per_second"] == {"median": 200.0, "min": 100.0, "max": 300.0}
    assert found["overall_tokens_per_second"] == pytest.approx(600 / 3)  # a second each
    assert found["padding_share"] == pytest.approx(1 - 600 / 900)
    bare = [{key: value for key, value in step.items() if key != "tokens"} for step in STEPS[1:3]]
    same_weight = report.summary(bare, 0)["overall_tokens_per_second"]
    assert same_weight == pytest.approx(150)  # 1/100 and 1/300
    several = [{**step, "steps": count} for step, count in zip(bare, (1, 3), strict=True)]
    assert report.summary(several, 0)["overall_tokens_per_second"] == pytest.approx(4 / (1 / 100 + 3 / 300))
    assert report.summary(several, 1)["steps"] == 3
    with pytest.raises(ValueError, match="none of them after the 2 steps"):
        report.summary(several, 2)  # the rate of the last three holds a step of the warm-up


def test_mfu_and_the_cost_of_a_table():
    facts = {"parameters": 1000, "matmul_flops": 8e6, "base_mean_tokens": 200.0, "pool_mean_tokens": 100.0}
    tokens = report.table_tokens(200, 100)
    assert tokens == 3 * (3 * 100_000 * 200 + 300_000 * 100)
    assert report.table_hours(1000, 3.6e6, 400) == pytest.approx(1 + 1)
    done = report.finish({"steps": STEPS, "seconds_to_first_step": 0.0, "peak_memory_gb": 1.0}, facts, 1, price=9.0)
    assert done["mfu"] == pytest.approx(report.mfu(200, 1000, 8e6)) == pytest.approx(0.1)
    assert done["table_hours"] == pytest.approx(tokens / 200 / 3600)
    assert done["run_dollars"] == pytest.approx(done["table_hours"])  # nine runs
    assert report.parameters(SHAPES["llama32_3b"]) == 3_212_749_824
    assert report.parameters(SHAPES["llama3_8b"]) == 8_030_261_248


def test_tometune_is_called_with_its_defaults(tmp_path):
    given = overrides(TOMETUNE["tometune_unsloth"], SETTINGS_OF_A_RUN, tmp_path, 48)
    assert {"model.backend=unsloth", "trainer.max_steps=48", "trainer.logging_steps=1"} <= set(given)
    assert "data.base.rows=3" in given
    assert "trainer.warmup_steps=0" not in given
    assert "trainer.warmup_steps=0" in overrides([], SETTINGS_OF_A_RUN, tmp_path, 5)
    changed = {each.partition("=")[0] for each in given if each.startswith(("trainer.", "model.", "lora."))}
    trainer = {"trainer.max_steps", "trainer.logging_steps", "trainer.save_steps"}
    assert changed == {"model.id", "model.backend", *trainer}


class FakeRunner:
    """Writes a model's config instead of the model, and returns the same steps for each contender."""

    def __init__(self, folder: Path, _: float) -> None:
        self.folder, self.calls = folder, []
        type(self).last = self

    def __call__(self, name: str, settings: dict[str, Any]) -> dict[str, Any]:
        self.calls.append((name, settings["shape"], settings["storage"], settings["max_length"]))
        if name == "model":
            Path(settings["model"]).mkdir()
            (Path(settings["model"]) / "config.json").write_text(json.dumps(SHAPES[settings["shape"]]))
        elif name == "rows":
            return {"base_mean_tokens": 200.0, "pool_mean_tokens": 100.0}
        elif name == "matmul":
            return {"matmul_flops": 8e14}
        return {"steps": STEPS, "seconds_to_first_step": 1.0, "peak_memory_gb": 1.0, "loss": 1.0, "grad_norm": 1.0}


def test_contenders_with_settings_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_gpu, "Runner", FakeRunner)
    chosen = ["--contenders", "tometune_transformers,tometune_bf16,tometune_8b"]
    options = bench_gpu.command_line([*chosen, "--price", "3", "--warmup", "1"])
    found: dict[str, Any] = {"circumstances": {}, "facts": {}, "contenders": {}, "generation": {}}
    bench_gpu.measure(options, tmp_path, found, gpu=True)
    four, sixteen, eight = ("llama32_3b", "nf4", 2048), ("llama32_3b", "bf16", 2048), ("llama3_8b", "bf16", 4096)
    assert FakeRunner.last.calls == [
        *(("model", *four), ("matmul", *four), ("rows", *four), ("tometune_transformers", *four)),
        *(("tometune_bf16", *sixteen), ("model", *eight), ("tometune_8b", *eight)),
    ]
    plain, bf16, large = found["contenders"].values()
    assert (plain["parameters"], large["parameters"]) == (3_212_749_824, 8_030_261_248)
    assert large["mfu"] / plain["mfu"] == pytest.approx(8_030_261_248 / 3_212_749_824)
    assert bf16["table_hours"] == plain["table_hours"]
    assert large["table_hours"] is large["run_dollars"] is None
    said = [line for line in report.lines(found) if isinstance(line, str)]
    assert "tometune_8b: shape llama3_8b, storage bf16, max_length 4096" in said
    given = overrides([], {**SETTINGS_OF_A_RUN, **bench_gpu.SETTINGS["tometune_8b"]}, tmp_path, 48)
    assert {"model.quantization=none", "trainer.max_length=4096"} <= set(given)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("tometune_8b --model folder", "tometune_8b has a model of its own"),
        ("tometune_warm,tometune_transformers", "tometune_warm repeats tometune_transformers; name that one before it"),
        ("tometune_fp8_warm", "tometune_fp8_warm repeats tometune_fp8"),
        ("tometune_fp8 --logging-steps 10", "has to divide --steps and --warmup"),
        ("trl_peft --logging-steps 4", "the recipes log each step"),
        ("tometune_16", "there is no 'tometune_16'"),
    ],
)
def test_contenders_that_cannot_be_measured(words, line, capsys):
    with pytest.raises(SystemExit):
        bench_gpu.command_line(["--contenders", *words.split()])
    assert line in capsys.readouterr().err


def run_script(name: str, folder: Path, env: dict[str, str], *arguments: str) -> tuple[dict[str, Any], str]:
    command = [sys.executable, SCRIPTS / name, *arguments, "--json", "found.json"]
    env = {**env, "COLUMNS": "80", "TMPDIR": str(folder)}
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.iterdir() if path.name.startswith("tometune-bench")] == []
    return json.loads((folder / "found.json").read_text(encoding="utf-8")), done.stdout


@pytest.mark.nightly
@pytest.mark.whole
def test_every_figure_has_a_target_and_its_circumstances(clean_env, tmp_path):
    sizes = ["--rows", "60", "--pairs", "50", "--repeat", "1", "--model", "tiny", "--runs", "2"]
    written, printed = run_script("bench.py", tmp_path, clean_env, *sizes)
    assert written["data"] == "made-up rows of the same shape, 60 rows of the base; model=tiny"
    assert " cores, load " in written["machine"]
    assert "torch" in written["versions"]
    targets = [(figure["unit"], figure["target"]) for figure in written["figures"] if figure["target"]]
    sweep = [("times", 1.1), ("s", 1)]
    assert targets == [("rows/s", 4000), ("s", 5), *[("s", 1.5)] * 3, *sweep, ("pairs/s", 15_000), ("GB", 3)]
    assert all(figure["median"] > 0 for figure in written["figures"])
    table = printed[printed.index("\nwhat ") :]
    assert max(map(len, table.splitlines())) <= 80
    assert all(figure["name"] in table for figure in written["figures"])


@pytest.mark.nightly
@pytest.mark.whole
def test_contenders_on_the_cpu(clean_env, tmp_path):
    names = ["tometune_transformers", "tometune_warm", "tometune_bf16", "trl_peft", "generate_profiled"]
    sizes = ["--rows", "300", "--steps", "3", "--warmup", "1", "--batches", "2", "--new-tokens", "8"]
    chosen = ["--rehearse", "--model-shape", "tiny", "--contenders", ",".join(names)]
    hidden = {**clean_env, "CUDA_VISIBLE_DEVICES": "", "PATH": ""}  # no nvidia-smi
    found, printed = run_script("bench_gpu.py", tmp_path, hidden, *sizes, *chosen)
    assert [*found["contenders"], *found["generation"]] == names
    assert all(name in printed for name in names)
    for each in found["contenders"].values():
        assert "error" not in each, each
        assert len(each["raw_steps"]) == 4
        assert each["steps"] == 3
        assert each["tokens_per_second"]["min"] > 0
        assert each["grad_norm"] > 0
        assert 4 < each["loss"] < 8
        assert 0 <= each["padding_share"] < 1
    (answered,) = found["generation"]["generate_profiled"]["runs"]
    assert answered["tokens_per_second"] > 0
    assert sum(answered["profile"]["by_kind"].values()) > 0
    assert 0 < found["facts"]["pool_mean_tokens"] < 256


@pytest.mark.nightly
@pytest.mark.whole
def test_a_contender_that_logs_every_second_step(clean_env, tmp_path):
    sizes = ["--rows", "300", "--steps", "4", "--warmup", "2", "--logging-steps", "2"]
    chosen = ["--rehearse", "--model-shape", "tiny", "--contenders", "tometune_transformers"]
    hidden = {**clean_env, "CUDA_VISIBLE_DEVICES": "", "PATH": ""}  # no nvidia-smi
    found, _ = run_script("bench_gpu.py", tmp_path, hidden, *sizes, *chosen)
    result = found["contenders"]["tometune_transformers"]
    assert [step["steps"] for step in result["raw_steps"]] == [1, 1, 2, 2]
    assert result["steps"] == 4
