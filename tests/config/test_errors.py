"""Nearest names."""

from tometune.common.errors import did_you_mean, nearest


def test_nearest_first_and_ties_in_order():
    assert nearest("mix_30k", ["mix_100k", "mix_200k", "mix_300k", "pydocs_1k"]) == ["mix_300k", "mix_100k"]


def test_a_beginning_or_an_end_is_near():
    assert nearest("adam", ["sgd", "adamw_torch"]) == ["adamw_torch"]
    assert nearest("batch_size", ["per_device_train_batch_size", "max_length"]) == ["per_device_train_batch_size"]


def test_nothing_near():
    assert did_you_mean("zebra", ["adamw_torch"]) == ""
    assert did_you_mean("", ["adamw_torch"]) == ""
    assert did_you_mean("x", []) == ""
