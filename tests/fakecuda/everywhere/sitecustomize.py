"""With this folder and tests/ on PYTHONPATH every process of a program finds the fake device: a script's, workers'."""

import os

import fakecuda

fakecuda.install(int(os.environ.get("FAKECUDA_DEVICES", "1")))
