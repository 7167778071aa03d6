"""Experiment tracking behind one small class."""
