from pathlib import Path

import pytest

from tometune.config.model import ModelConfig, Quantization, Weights


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tiny_config() -> ModelConfig:
    return ModelConfig(name="tiny", id="tiny", weights=Weights.random, quantization=Quantization.none)


@pytest.fixture
def smollm2_config() -> ModelConfig:
    return ModelConfig(name="smollm2_135m", id="HuggingFaceTB/SmolLM2-135M-Instruct", quantization=Quantization.none)
