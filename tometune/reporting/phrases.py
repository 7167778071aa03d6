"""Numbers and lists as text, the same everywhere in the report."""

from collections.abc import Mapping, Sequence
from typing import Any

LABELS = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
"""Metrics as the table calls them."""


def p_value(p: float) -> str:
    """Return a p-value as text."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def count(number: int | None) -> str:
    """Return a number of seeds as text."""
    return "more than 100,000" if number is None else f"{number:,}"


def between(entry: Mapping[str, Any]) -> str:
    """Return an interval as text."""
    return f"{signed(entry['ci_low'])} to {signed(entry['ci_high'])}"


def signed(value: float) -> str:
    """Return a difference with its sign."""
    return f"{value:+.3f}".replace("-", "−")


def listed(names: Sequence[str]) -> str:
    """Join names to a list in words."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
