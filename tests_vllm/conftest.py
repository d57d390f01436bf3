"""Tests with a real vLLM on the CPU (`make test-vllm`): a small model of random weights, engines and servers of it."""

from __future__ import annotations

import os

import pytest

# One gigabyte of cache is plenty for these models, and no test may reach a hub.
os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_NO_USAGE_STATS="1",
    VLLM_LOGGING_LEVEL="WARNING",
    VLLM_SERVER_DEV_MODE="1",
    VLLM_ALLOW_RUNTIME_LORA_UPDATING="1",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
)


def pytest_configure(config: pytest.Config) -> None:
    """vLLM's own warnings are not ours to mend."""
    config.addinivalue_line("filterwarnings", "default")
