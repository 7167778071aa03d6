"""Scoring: tasks, answers, metrics per example, intervals and the table. It does not depend on training."""
