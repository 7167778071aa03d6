"""The size of a step does not depend on how much fits into a forward pass."""

import pytest

from tests.training.conftest import settings
from tometune.common.errors import UserError
from tometune.training.steps import Step, effective_batch, in_packs, micro_batches, steps_of

PACKS = {"packing": True, "conversations_per_step": None, "tokens_per_step": 512}


def test_a_step_is_a_number_of_packs_or_conversations() -> None:
    packs, conversations = settings(**PACKS).trainer, settings(conversations_per_step=8).trainer
    assert (effective_batch(packs), in_packs(packs)) == (512 // 64, True)
    assert (effective_batch(conversations), in_packs(conversations)) == (8, False)
    assert not in_packs(settings(packing=True, conversations_per_step=8).trainer)
    assert steps_of(settings(**PACKS, max_steps=None).trainer, 17) == 3


@pytest.mark.parametrize(("world", "expected"), [("1", [8, 4, 2, 1]), ("2", [4, 2, 1]), ("8", [1])])
def test_micro_batches_divide_a_step(monkeypatch: pytest.MonkeyPatch, world: str, expected: list[int]) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", world)
    assert micro_batches(settings(**PACKS).trainer) == expected
    assert {Step(8, size).accumulation * size * int(world) for size in expected} == {8}


def test_steps_that_cannot_be_divided_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"^trainer\.micro_batch=3: does not divide the 8 rows .* one of 1, 2, 4, 8, or"
    ):
        micro_batches(settings(**PACKS, micro_batch=3).trainer)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match=r"^trainer\.tokens_per_step=512: 8 packs per step cannot be divided among 3"):
        effective_batch(settings(**PACKS).trainer)
    with pytest.raises(UserError, match=r"^trainer\.conversations_per_step=8: 8 conversations per step"):
        effective_batch(settings(conversations_per_step=8).trainer)
