"""Figures are measured as a user would see them: without the compiler settings of the other tests."""

import os

import pytest


@pytest.fixture(scope="session")
def plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_"))}
