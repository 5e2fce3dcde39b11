"""The strips: a query, its change, the attacked query, and the five nearest images before and after."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .load import Exhibit
from .words import THIN, esc, number

LARGE, SMALL, KINDS = 96, 80, ("worst", "middle", "held")
RAW = 64
"""Images with an edge below so many pixels are kept pixel by pixel; the page enlarges them unsmoothed."""


def pixels(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return images in [0, 1] as bytes."""
    return np.asarray(np.rint(x.clip(0.0, 1.0) * 255), dtype=np.uint8)


def encode(image: NDArray[np.uint8], most: int = SMALL) -> str:
    """Return an image (c, h, w), c being 1 or 3, as a data URI.

    Small ones are PNG, pixel by pixel; of photographs a JPEG of at most ``most`` pixels is made.
    """
    drawn: Image.Image = Image.fromarray(
        image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
    )
    out = io.BytesIO()
    if max(drawn.size) < RAW:
        drawn.save(out, format="PNG", optimize=True)
        kind = "png"
    else:
        drawn.thumbnail((most, most), Image.Resampling.LANCZOS, reducing_gap=3.0)
        drawn.save(out, format="JPEG", quality=82)
        kind = "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(out.getvalue()).decode()


def data_uri(x: NDArray[np.float32], most: int = SMALL) -> str:
    """Return an image (c, h, w) in [0, 1] as a data URI; see :func:`encode`."""
    return encode(pixels(x), most)


def change(clean: NDArray[np.float32], attacked: NDArray[np.float32], eps: float) -> NDArray[np.float32]:
    """Return the change on a grey ground: 0.5 is none, black and white are the most that was allowed.

    Where the budget is not a bound on each pixel, the largest change takes its place.
    """
    delta = attacked - clean
    most = float(np.abs(delta).max(initial=0.0))
    scale = eps if eps > 0 and most <= 1.01 * eps and most > 0.25 * eps else most
    return np.asarray(0.5 + delta / (2 * scale) if scale > 0 else np.full_like(delta, 0.5), dtype=np.float32)


def right_of_five(exhibit: Exhibit, when: str) -> NDArray[np.int64]:
    """Return for each example how many of its nearest images are of its class."""
    same = exhibit.rows[f"{when}_y"] == exhibit.rows["query_y"][:, None]
    return np.asarray(same.sum(1), dtype=np.int64)


def severity(exhibit: Exhibit) -> list[int]:
    """Return the examples from the worst to the one that held best.

    Order: lost before held, then the fewest right images left, then the nearest wrong image.
    """
    held = exhibit.rows["held"].astype(bool)
    left, was = right_of_five(exhibit, "after"), right_of_five(exhibit, "before")
    nearest, ids = exhibit.rows["after_d"][:, 0], exhibit.rows["ids"]
    return sorted(range(len(exhibit)), key=lambda i: (held[i], left[i], -was[i], nearest[i], ids[i]))


def choose(exhibit: Exhibit, k: int = 6) -> list[tuple[str, int]]:
    """Choose examples: the worst, the middle and those that held best, a third each; without repetition."""
    held = exhibit.rows["held"].astype(bool)
    order = severity(exhibit)
    third = max(1, k // 3)
    start = max(0, (len(order) - third) // 2)
    kept = [i for i in reversed(order) if held[i]][:third]
    picks = {"worst": [i for i in order if not held[i]][:third], "held": kept}
    taken = {i for some in picks.values() for i in some}
    around = sorted(order, key=lambda i: abs(order.index(i) - start))
    picks["middle"] = [i for i in around if i not in taken][: max(0, k - len(taken))]
    return [(kind, i) for kind in KINDS for i in picks[kind]][:k]


def _neighbours(exhibit: Exhibit, i: int, when: str, title: str) -> str:
    cells = []
    rows = exhibit.rows
    for x, y, d in zip(exhibit.x[f"{when}_x"][i], rows[f"{when}_y"][i], rows[f"{when}_d"][i], strict=True):
        right = int(y) == int(rows["query_y"][i])
        name = esc(exhibit.class_name(int(y)))
        word, mark = ("right", "✓") if right else ("wrong", "✗")
        cells.append(
            f'<li class="{word}"><img src="{data_uri(x)}" alt="{name}, {word}">'
            f'<span><b aria-hidden="true">{mark}</b> {name}</span><small>{number(float(d))}</small></li>'
        )
    return f'<div><h5>{title}</h5><ol class="five">{"".join(cells)}</ol></div>'


def strip(exhibit: Exhibit, kind: str, i: int, moved: str) -> str:
    """Return one example as HTML; ``moved`` says what was changed: a query or a gallery image."""
    clean, attacked = exhibit.x["query"][i], exhibit.x["attacked"][i]
    three = (
        (clean, moved),
        (change(clean, attacked, exhibit.eps), "change, magnified"),
        (attacked, f"attacked {moved}"),
    )
    images = "".join(
        f'<figure><img src="{data_uri(x, LARGE)}" alt="{esc(words)}">'
        f"<figcaption>{esc(words)}</figcaption></figure>"
        for x, words in three
    )
    before, after = (int(right_of_five(exhibit, when)[i]) for when in ("before", "after"))
    near = exhibit.rows["before_y"].shape[1]
    title = {"worst": "Among the worst", "middle": "In the middle", "held": "Held"}[kind]
    which = f"{esc(moved)}{THIN}#{int(exhibit.rows['ids'][i])}"
    of = esc(exhibit.class_name(int(exhibit.rows["query_y"][i])))
    return (
        f'<article class="strip"><h4>{title} <span>{which}, class {of}: '
        f"{before} of {near} right before, {after} of {near} after</span></h4>"
        f'<div class="three">{images}</div>'
        f'<div class="near">{_neighbours(exhibit, i, "before", "Nearest before the attack")}'
        f"{_neighbours(exhibit, i, 'after', 'Nearest after the attack')}</div></article>"
    )


def moved_by(attack: str) -> str:
    """Say what an attack changes: a query, or an image of the gallery."""
    return "gallery image" if attack.startswith("CA") else "query"


def strips(exhibit: Exhibit, k: int = 3) -> str:
    """Return the chosen examples of one attack."""
    return "".join(strip(exhibit, kind, i, moved_by(exhibit.attack)) for kind, i in choose(exhibit, k))
