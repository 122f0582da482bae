"""python -m fakecuda MODULE ARGUMENTS...: run a module as if there were a GPU. FAKECUDA_DEVICES: how many."""

from __future__ import annotations

import os
import runpy
import sys

import fakecuda

fakecuda.install(int(os.environ.get("FAKECUDA_DEVICES", "1")))
if os.environ.get("FAKECUDA_EXECUTE") == "0":
    fakecuda.options["execute"] = False
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
