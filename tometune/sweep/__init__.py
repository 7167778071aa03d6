"""Sweeps: their cells and states, code before and after their runs, and the plan."""
