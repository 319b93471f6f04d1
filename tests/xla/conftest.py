"""Devices to run programs on: eight of them, all on the one CPU."""

import os

# Read when JAX is imported for the first time.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8").strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
