"""A model hub on localhost, for tests that go through the real hub client."""

from tests.hub.server import Hub

__all__ = ["Hub"]
