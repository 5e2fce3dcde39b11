"""Holdfast: adversarially robust metric learning."""

from ._version import __version__

__all__ = ["__version__"]
