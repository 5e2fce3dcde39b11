"""Write the tables and the picture of README.md and docs/ that are made from results/.

    python benchmarks/pages.py           # write them
    python benchmarks/pages.py --check   # say which are not what results/ gives; exit code 1

A table stands between ``<!-- results: NAME ARGUMENTS -->`` and ``<!-- /results -->``; see ``TABLES``.
"""  # fmt: skip

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from holdfast.leaderboard import TRACKS, Board, Track, boards, markdown, plot, read_entries

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/leaderboard.md", "docs/claims.md")
BLOCK = re.compile(r"(<!-- results: ([^>\n]*?) -->\n).*?(<!-- /results -->)", re.DOTALL)


def of(track: str, *kinds: str) -> list[Board]:
    """Return the boards of a track, of some kinds or all."""
    folder = ROOT / "results" / track
    found = boards(read_entries(folder)) if folder.is_dir() else []
    return [board for board in found if not kinds or board.terms.kind in kinds]


def board(track: str, *kinds: str) -> str:
    """Return the tables of a track."""
    return markdown(of(track, *kinds)) or "*Not run by us.*"


def tracks() -> str:
    """Return all tracks: what they are, how many runs are filed, and the command."""
    lines = ["| track | what | runs filed | command |", "|---|---|---:|---|"]
    for name, track in TRACKS.items():
        folder = ROOT / "results" / name
        runs = len(read_entries(folder)) if folder.is_dir() else 0
        needs = "" if name == "digits" else " --data-dir DIR"
        lines.append(
            f"| [{name}](#{name}) | {track.title} | {runs} | `holdfast leaderboard run {name}{needs}` |"
        )
    return "\n".join(lines)


def published(track: str) -> str:
    """Return figures of others that stand beside a track."""
    chosen = TRACKS[track]
    assert isinstance(chosen, Track)
    lines = ["| method | clean R@1 | ERS, published faults | source |", "|---|---:|---:|---|"]
    lines += [f"| {r.method} | {r.recall:.1f} | {r.score:.1f} | {r.source} |" for r in chosen.published]
    return "\n".join(lines)


def claims() -> str:
    """Return the claims of the papers, and what the records say."""
    import claims  # beside this file

    return str(claims.table(of))


TABLES: Mapping[str, Callable[..., str]] = {
    "board": board, "tracks": tracks, "published": published, "claims": claims,
}  # fmt: skip


def filled(text: str) -> str:
    """Return a page with all its tables made anew."""

    def made(found: re.Match[str]) -> str:
        name, *arguments = found[2].split()
        return f"{found[1]}{TABLES[name](*arguments)}\n{found[3]}"

    return BLOCK.sub(made, text)


def stale() -> list[str]:
    """Return the pages whose tables are not what results/ gives."""
    return [p for p in PAGES if filled(text := (ROOT / p).read_text("utf-8")) != text]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        for page in (found := stale()):
            print(f"{page}: its tables are not what results/ gives; python benchmarks/pages.py")
        return bool(found)
    plot(of("digits"), ROOT / "docs" / "images" / "leaderboard.png")
    for page in PAGES:
        path = ROOT / page
        path.write_text(filled(path.read_text("utf-8")), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
