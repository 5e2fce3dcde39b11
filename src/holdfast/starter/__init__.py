"""First contact with a folder of pictures: what is in it, what to mend, and a recipe to start from."""

from __future__ import annotations

from .findings import Finding, findings
from .look import Look, Picture, look
from .recipe import Choice, choose, recipe_text

__all__ = ["Choice", "Finding", "Look", "Picture", "choose", "findings", "look", "recipe_text"]
