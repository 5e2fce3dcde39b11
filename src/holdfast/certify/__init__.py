"""Certificates: radii inside which an answer cannot change, with what they cost and how exact they are."""

from .certificate import Certificate
from .lipschitz import LipschitzCertifier, certify_lipschitz, certify_pixels, lipschitz_constant
from .neighbours import certify_neighbours, find_perturbations
from .references import References
from .smoothed import (
    certify_clusters,
    certify_moving_pairs,
    certify_recall,
    certify_topk,
    certify_verification,
)
from .smoothing import SmoothedEncoder, Smoothing, smoothed_embeddings
from .triplet import neighbour_bound, triplet_bounds
from .vote import certify_votes

__all__ = [
    "Certificate",
    "LipschitzCertifier",
    "References",
    "SmoothedEncoder",
    "Smoothing",
    "certify_clusters",
    "certify_lipschitz",
    "certify_moving_pairs",
    "certify_neighbours",
    "certify_pixels",
    "certify_recall",
    "certify_topk",
    "certify_verification",
    "certify_votes",
    "find_perturbations",
    "lipschitz_constant",
    "neighbour_bound",
    "smoothed_embeddings",
    "triplet_bounds",
]
