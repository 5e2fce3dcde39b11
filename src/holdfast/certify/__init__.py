"""Certificates: radii inside which an answer cannot change, with what they cost and how exact they are."""

from .certificate import Certificate

__all__ = ["Certificate"]
