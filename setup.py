"""Where links of the checkout came out as files (git on Windows without core.symlinks), map the folders by name."""

from pathlib import Path

from setuptools import setup

FOLDERS = {"trigru": "trigru", "trigru.kernels": "kernels", "trigru.bench": "bench"}
linked = Path("src/trigru/kernels").is_dir()
setup(**({} if linked else {"package_dir": FOLDERS}))
