"""What Griffe, which reads docstrings for the site, is told of this project's habits."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Habits(griffe.Extension):
    """The section of examples is called "Example:" here, which Griffe knows by its plural alone."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rename the section."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
