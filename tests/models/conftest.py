from pathlib import Path

import pytest

from tometune.config.model import ModelConfig, Quantization, Weights
from tometune.models.source import ModelSource, locate

TINY = ModelConfig(name="tiny", id="tiny", weights=Weights.random, quantization=Quantization.none)


@pytest.fixture(scope="session")
def source(cache: Path) -> ModelSource:
    return locate(TINY, cache)
