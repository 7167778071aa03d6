"""Scoring: tasks, greedy answers, ROUGE and other metrics by example, intervals, the table. Knows no training."""
