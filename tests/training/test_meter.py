import resource
import time
from pathlib import Path

import pytest
import torch

from tometune.training.metrics import Meter, Totals, peak_memory_bytes

PADDED = {
    "input_ids": torch.zeros(2, 5, dtype=torch.long),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]),
    "labels": torch.tensor([[-100, -100, 3, 4, 5], [-100, 3, -100, -100, -100]]),
}
PACKED = {name: value[:1] for name, value in PADDED.items() if name != "attention_mask"}


def test_padding_is_counted_apart() -> None:
    meter = Meter()
    meter.count(PADDED, lambda counts: counts)
    assert (meter.totals.tokens, meter.totals.padded_tokens, meter.totals.trained_tokens) == (7, 10, 4)


def test_packed_rows_have_no_padding() -> None:
    meter = Meter()
    meter.count(PACKED, lambda counts: counts)
    assert (meter.totals.tokens, meter.totals.padded_tokens, meter.totals.trained_tokens) == (5, 5, 3)


def test_every_process_counts() -> None:
    meter = Meter()
    meter.count(PADDED, lambda counts: counts * 4)
    assert (meter.totals.tokens, meter.totals.padded_tokens, meter.totals.trained_tokens) == (28, 40, 16)


def test_a_resumed_meter_goes_on_and_its_first_rate_is_of_this_attempt(tmp_path: Path) -> None:
    meter = Meter(Totals(seconds=100.0, tokens=1000, padded_tokens=2000, trained_tokens=300))
    meter.count(PADDED, lambda counts: counts)
    meter.save(tmp_path)
    again = Meter.load(tmp_path)
    assert again.totals == meter.totals
    again.start()
    time.sleep(0.01)
    again.count(PADDED, lambda counts: counts)
    rates = again.rates()
    assert 0 < rates["tokens_per_second"] <= 7 / 0.01
    assert rates["padded_tokens_per_second"] / rates["tokens_per_second"] == pytest.approx(10 / 7)
    assert again.totals.seconds > 100


def test_rates_are_since_the_last_call_and_time_before_the_start_is_free() -> None:
    meter = Meter()
    time.sleep(0.05)
    meter.start()
    meter.count(PADDED, lambda counts: counts)
    meter.rates()
    assert meter.totals.seconds < 0.05
    assert meter.rates()["tokens_per_second"] == 0


def test_peak_memory_is_in_bytes() -> None:
    assert 50e6 < peak_memory_bytes() < 1e12


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about the process, not a GPU")
@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_the_systems_count_memory_in_other_units(monkeypatch: pytest.MonkeyPatch, platform: str, unit: int) -> None:
    monkeypatch.setattr("sys.platform", platform)
    expected = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    assert peak_memory_bytes() == pytest.approx(expected, rel=0.05)
