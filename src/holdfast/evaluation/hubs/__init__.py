"""Hubs of a gallery: rows that come back for too many queries, a gate for new rows, and attacks on both."""

from .attack import HubOutcome, attack_hubs, occurrence
from .audit import BUDGET, HubAudit, audit_hubs, robust_z
from .gate import HubGate

__all__ = [
    "BUDGET",
    "HubAudit",
    "HubGate",
    "HubOutcome",
    "attack_hubs",
    "audit_hubs",
    "occurrence",
    "robust_z",
]
