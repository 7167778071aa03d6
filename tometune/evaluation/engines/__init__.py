"""Engines that generate answers, all with the same interface."""
