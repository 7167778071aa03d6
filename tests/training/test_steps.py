"""What a step is made of, whatever fits into a forward pass."""

import pytest

from tests.training.conftest import settings
from tometune.common.errors import UserError
from tometune.training.steps import Step, effective_batch, in_packs, sizes, steps_of

PACKS = {"packing": True, "conversations_per_step": None, "tokens_per_step": 512}


def test_a_step_is_so_many_packs_or_conversations() -> None:
    packs, talks = settings(**PACKS), settings(conversations_per_step=8)
    assert (effective_batch(packs), in_packs(packs.trainer)) == (512 // 64, True)
    assert (effective_batch(talks), in_packs(talks.trainer)) == (8, False)
    assert not in_packs(settings(packing=True, conversations_per_step=8).trainer)
    assert steps_of(settings(**PACKS, max_steps=None), 17) == 3


@pytest.mark.parametrize(("world", "found"), [("1", [8, 4, 2, 1]), ("2", [4, 2, 1]), ("8", [1])])
def test_what_fits_divides_a_step(monkeypatch: pytest.MonkeyPatch, world: str, found: list[int]) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", world)
    config = settings(**PACKS)
    assert sizes(config) == found
    assert {Step(8, size).accumulation * size * int(world) for size in found} == {8}


def test_what_cannot_be_shared_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"^trainer\.micro_batch=3: does not divide the 8 rows .* one of 1, 2, 4, 8, or"
    ):
        sizes(settings(**PACKS, micro_batch=3))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match=r"^trainer\.tokens_per_step=512: 8 packs a step cannot be shared by 3"):
        effective_batch(settings(**PACKS))
    with pytest.raises(UserError, match=r"^trainer\.conversations_per_step=8: 8 conversations a step"):
        effective_batch(settings(conversations_per_step=8))
