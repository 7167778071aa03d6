"""Marks schema fields that cannot change a result: labels, locations, logging."""

NOT_IDENTITY = {"identity": False}
"""Metadata of such a field; `tometune.run` leaves it out of the run's hash."""
