"""Which inputs an adversary can move: those that its gain reads."""

from __future__ import annotations

from ..errors import InvalidArgument


def check_moves(moves: str, of: str) -> None:
    """Raise InvalidArgument unless ``moves`` names some of ``of``, each once."""
    if not moves or set(moves) - set(of) or len(set(moves)) < len(moves):
        need = f"some of {of!r}, each once: its gain reads no other" if len(of) > 1 else repr(of)
        raise InvalidArgument("moves", need, moves)
