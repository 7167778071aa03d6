"""The report of a sweep and the data card of a mix, without torch. Intervals: evaluation/statistics.py."""
