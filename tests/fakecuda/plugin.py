"""A pytest plugin: `PYTHONPATH=tests pytest -p fakecuda.plugin`. FAKECUDA_DEVICES: how many."""

from __future__ import annotations

import os

import fakecuda

fakecuda.install(int(os.environ.get("FAKECUDA_DEVICES", "1")))
