"""Where things are."""

from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
SOURCE = ROOT / "src"
CACHE = ROOT / ".cache" / "figures"
"""Drawn figures by the hash of what they depend on; ignored by git."""
