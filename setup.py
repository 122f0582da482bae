"""What pyproject.toml cannot say: the packages, in a checkout without links too, and a README for PyPI.

git on Windows without core.symlinks writes links as files; the folders are then mapped by name. Links of the README
lead to files beside it, which a page on PyPI does not have: they are made absolute."""

import re
from pathlib import Path

from setuptools import find_packages, setup

REPOSITORY = "https://github.com/trigru/trigru"
FILES, IMAGES = f"{REPOSITORY}/blob/main/", "https://raw.githubusercontent.com/trigru/trigru/main/"
FOLDERS = {"trigru": "trigru", "trigru.kernels": "kernels", "trigru.bench": "bench"}


def absolute(text):
    """Markdown with its relative links and images made absolute."""
    text = re.sub(r"\]\(#", f"]({FILES}README.md#", text)
    return re.sub(r"(!?)(\[[^\]]*\]\()(?![a-z]+:)", lambda m: m[1] + m[2] + (IMAGES if m[1] else FILES), text)


def packages(name, folder):
    """The package in the folder and those within it, through links too."""
    return [name, *(f"{name}.{inner}" for inner in find_packages(folder))]


linked = Path("src/trigru/kernels").is_dir()
folders = {"trigru": "src/trigru"} if linked else FOLDERS
setup(
    packages=[package for name, folder in folders.items() for package in packages(name, folder)],
    long_description=absolute(Path("README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
    **({} if linked else {"package_dir": FOLDERS}),
)
