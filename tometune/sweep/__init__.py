"""Sweeps: which runs belong to one, who is at which of them, what is missing at the end, what it all will take."""
