"""The size of a step does not depend on how much fits into a forward pass; the memory of optimisers."""

from importlib import util

import pytest
from accelerate.data_loader import BatchSamplerShard
from torch import nn

from tests.training.conftest import settings
from tometune.common.errors import UserError
from tometune.training.batches import FullBatches
from tometune.training.memory import embedded, trainable
from tometune.training.steps import (
    Step,
    check_optimiser,
    effective_batch,
    in_packs,
    micro_batches,
    state_bytes,
    steps_of,
    with_steps,
)

PACKS = {"packing": True, "conversations_per_step": None, "tokens_per_step": 512}


def test_a_step_is_a_number_of_packs_or_conversations():
    packs, conversations = settings(**PACKS).trainer, settings(conversations_per_step=8).trainer
    assert (effective_batch(packs), in_packs(packs)) == (512 // 64, True)
    assert (effective_batch(conversations), in_packs(conversations)) == (8, False)
    assert not in_packs(settings(packing=True, conversations_per_step=8).trainer)
    assert steps_of(settings(**PACKS, max_steps=None).trainer, 17) == 3


@pytest.mark.parametrize("steps", [PACKS, {"packing": False, "conversations_per_step": 8}])
def test_the_same_number_of_tokens_for_every_mix(steps):
    trainer = settings(**steps, max_steps=None, max_tokens=10_000).trainer
    for rows, tokens in ((80, 5_000), (800, 50_000)):  # 10 and 100 steps per epoch
        found = with_steps(trainer, rows, tokens)
        assert (found.max_steps, steps_of(found, rows)) == (20, 20), "repeated twice, and stopped after a fifth"
    assert with_steps(trainer, 8, 1_000_000).max_steps == 1
    plain = settings(**steps, max_steps=None).trainer
    assert with_steps(plain, 80, 5_000) is plain


@pytest.mark.parametrize(("world", "expected"), [("1", [8, 4, 2, 1]), ("2", [4, 2, 1]), ("8", [1])])
def test_micro_batches_divide_a_step(monkeypatch, world, expected):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", world)
    assert micro_batches(settings(**PACKS).trainer) == expected
    assert micro_batches(settings(**PACKS | {"micro_batch": 8}).trainer) == expected[:1], "of one GPU's preset"
    if world == "2":
        assert micro_batches(settings(**PACKS | {"micro_batch": 3}).trainer) == [2]
    assert {Step(8, size).accumulation * size * int(world) for size in expected} == {8}


@pytest.mark.parametrize(
    ("world", "trainer", "line"),
    [
        ("1", PACKS | {"micro_batch": 3}, r"^trainer\.micro_batch=3: does not divide the 8 rows .* of 1, 2, 4, 8, "),
        ("3", PACKS, r"^trainer\.tokens_per_step=512: 8 packs per step cannot be divided among 3"),
        ("3", {"conversations_per_step": 8}, r"^trainer\.conversations_per_step=8: 8 conversations per step"),
    ],
)
def test_steps_that_cannot_be_divided_are_rejected(monkeypatch, world, trainer, line):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(UserError, match=line):
        micro_batches(settings(**trainer).trainer)


@pytest.mark.parametrize(
    ("rows", "shares"),
    [
        (8, [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]),
        (7, [[[0, 1], [4, 5]], [[2, 3], [6, "blank"]]]),
        (5, [[[0, 1], [4, "blank"]], [[2, 3], ["blank", "blank"]]]),
        (1, [[[0, "blank"]], [["blank", "blank"]]]),
    ],
)
def test_two_processes_share_the_rows_of_an_epoch_without_a_repeat(rows, shares):
    batches = FullBatches(range(rows), 2, processes=2, blank="blank")  # type: ignore[arg-type]
    found = [BatchSamplerShard(batches, 2, process) for process in range(2)]
    assert [list(share) for share in found] == shares
    assert {len(share) for share in found} == {len(shares[0])}


def test_states_of_optimisers():
    assert state_bytes("adamw_torch", 10, embeddings=4) == 80
    assert state_bytes("paged_adamw_8bit", 10) == 20
    assert state_bytes("adamw_8bit", 10, embeddings=4) == 6 * 2 + 4 * 8
    assert state_bytes("adamw_torch_8bit", 10, embeddings=4) == 20, "torchao has no exception for embeddings"
    assert state_bytes("adamw_torch_4bit", 10) == 10
    tied = nn.ModuleDict({"table": nn.Embedding(5, 2), "head": nn.Linear(2, 5, bias=False)})
    tied["head"].weight = tied["table"].weight
    assert embedded(tied) == trainable(tied) == 10


@pytest.mark.parametrize(
    ("optim", "package"),
    [("lion_8bit", "bitsandbytes"), ("adamw_torch_8bit", "torchao"), ("stable_adamw", "optimi")],
)
def test_the_package_of_an_optimiser_is_missed_before_anything_is_loaded(monkeypatch, optim, package):
    monkeypatch.setattr(util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf"^trainer\.optim={optim}: needs {package}; pip install .*adamw_torch$"):
        check_optimiser(settings(optim=optim).trainer)
    check_optimiser(settings(optim="adamw_torch").trainer)
