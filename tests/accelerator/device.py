"""What the kit runs on."""

from __future__ import annotations

import importlib.metadata
import platform

import jax
from setting import emit

if __name__ == "__main__":
    device = jax.devices()[0]
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "dm-haiku", "optax", "numpy")}
    emit(
        platform=device.platform,
        device=device.device_kind,
        devices=jax.device_count(),
        runtime=getattr(device.client, "platform_version", "").replace("\n", " "),
        python=platform.python_version(),
        **versions,
    )
