"""Certificates: radii inside which an answer cannot change, with what they cost and how exact they are."""

from .certificate import Certificate
from .triplet import neighbour_bound, per_negative_bounds, triplet_bounds

__all__ = ["Certificate", "neighbour_bound", "per_negative_bounds", "triplet_bounds"]
