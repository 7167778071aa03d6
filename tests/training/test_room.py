"""How many rows fit: the search, against a GPU whose memory is a formula."""

from pathlib import Path

import pytest
import torch

from tometune.common.errors import UserError
from tometune.training import memory
from tometune.training.memory import Room, find_room


class Gpu:
    """Memory that a pass takes: what is there already, and so much a row."""

    def __init__(self, base: int, a_row: int, a_row_again: int, has: int) -> None:
        self.base, self.rows, self.has = base, {False: a_row, True: a_row_again}, has
        self.asked: list[tuple[int, bool]] = []

    def measure(self, size: int, again: bool) -> int:
        self.asked.append((size, again))
        peak = self.base + size * self.rows[again]
        if peak > self.has:
            raise torch.OutOfMemoryError
        return peak


SIZES = [8, 4, 2, 1]


@pytest.mark.parametrize(
    ("free", "checkpointing", "found"),
    [
        (200, "auto", Room(8, False, 90)),
        (90, "auto", Room(8, False, 90)),
        (89, "auto", Room(4, False, 50)),
        (20, "auto", Room(1, False, 20)),
        (19, "auto", Room(4, True, 18)),
        (200, True, Room(8, True, 26)),
        (12, "auto", Room(1, True, 12)),
    ],
)
def test_the_largest_that_fits_is_found(free: int, checkpointing: bool | str, found: Room) -> None:
    gpu = Gpu(10, 10, 2, has=free)
    assert find_room(gpu.measure, SIZES, checkpointing, free) == found
    assert len(gpu.asked) <= 5


def test_a_guess_that_does_not_fit_is_followed_by_a_smaller_one() -> None:
    gpu = Gpu(10, 10, 2, has=1000)

    def worse(size: int, again: bool) -> int:
        if size == 8:
            raise torch.OutOfMemoryError
        return gpu.measure(size, again)

    assert find_room(worse, SIZES, "auto", 1000) == Room(4, False, 50)


@pytest.mark.parametrize(("sizes", "checkpointing"), [([4], False), ([1], "auto")])
def test_where_nothing_fits_the_line_names_what_to_change(sizes: list[int], checkpointing: bool | str) -> None:
    with pytest.raises(UserError, match=r"^trainer\.max_length: \d rows? of this length") as error:
        find_room(Gpu(10, 10, 5, has=11).measure, sizes, checkpointing, 11)
    assert ("trainer.micro_batch=auto" in str(error.value)) == (sizes == [4])
    assert ("trainer.gradient_checkpointing=auto" in str(error.value)) == (checkpointing is False)


def test_what_was_found_is_remembered_by_kind(tmp_path: Path) -> None:
    found = Room(4, False, 50)
    assert memory.remembered(tmp_path, "a") is None
    memory.remember(tmp_path, "a", found)
    memory.remember(tmp_path, "b", Room(1, True, 9))
    assert memory.remembered(tmp_path, "a") == found
    (tmp_path / memory.NAME).write_text("{")
    assert memory.remembered(tmp_path, "a") is None
