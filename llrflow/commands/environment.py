"""What the command line sets in the environment of its process, for libraries that read it there."""

from __future__ import annotations

import os

PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds"
"""How long CPU devices wait for each other before XLA ends the process: by itself 40 s, less than a laptop sleeps."""

TRIED = (0, 12)
"""The newest jaxlib that is known to know the flag: XLA ends a process that sets one that it does not know."""


def xla_environment() -> None:
    """Set what XLA reads from the environment; before JAX starts its devices."""
    from jaxlib.version import __version_info__ as jaxlib_version

    flags = os.environ.get("XLA_FLAGS", "")
    if PATIENCE not in flags and jaxlib_version[:2] <= TRIED:
        os.environ["XLA_FLAGS"] = f"{flags} {PATIENCE}=86400".strip()


RAY = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}
"""Ray's own noise off, and its workers in the directory of the command."""


def ray_environment() -> None:
    """Set what Ray reads from the environment, where the user has not; before Ray is imported."""
    for name, value in RAY.items():
        os.environ.setdefault(name, value)
