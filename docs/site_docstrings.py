"""What Griffe, which reads docstrings for the site, is told of this project's habits."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Habits(griffe.Extension):
    """What it cannot know:

    - The section of examples is called "Example:" here, which Griffe knows by its plural alone.
    - "Inputs: input, hx", as torch writes it, becomes a box with that title.
    - In a module's docstring a line may begin with what it is about: "Bounded. A wait ...". It is a paragraph.
    """

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring."""
        if obj.docstring is None:
            return
        text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
        text = re.sub(r"^(Inputs|Outputs): ", r"\1: \1: ", text, flags=re.MULTILINE)
        if obj.is_module:
            text = re.sub(r"(?<=\.)\n(?=[A-Z][\w, ]{0,30}\. )", "\n\n", text)
        obj.docstring.value = text
