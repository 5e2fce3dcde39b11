"""Does the evaluation do what it says? R1 to R3, R15, R23, R25, R30."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...attacks import hits
from ...errors import DataError
from ...functional.ranking import chunks
from ...rng import choose
from ...search import frozen, in_precision
from ...types import Gallery, RetrievalTask
from ..embed import cluster_means, embed
from .compare import share, tolerance
from .examination import BATCH, Examination
from .finding import Finding, Status
from .material import ENOUGH_PASSES, Unavailable
from .searches import shortened, shows_iterates, with_radius
from .texts import at_most, found, percent, skipped

SAME = 1e-6
CLOSE = 1e-4


def determinism(e: Examination) -> Finding:
    """R1: embed up to 64 queries five times."""
    x = e.task.rows(slice(0, 64)).x
    first, *others = (F.normalize(embed(e.task.encoder, x), dim=1) for _ in range(5))
    value = max(float((z - first).norm(dim=1).max()) for z in others)
    detail = f"unit embeddings of {len(x)} queries differ by up to {value:.2g} between passes"
    if value <= CLOSE:
        return found("R1", "pass", value, detail)
    if e.passes >= ENOUGH_PASSES:
        detail += f"; decided by the mean of {e.passes} passes"
        return found("R1", "warn", value, detail)
    return found("R1", "fail", value, f"{detail}: the encoder is random")


def no_op(e: Examination) -> Finding:
    """R2: an attack with eps 0 must give back the images and their clean measures."""
    part = e.part
    nothing = with_radius(e.threat, 0.0)
    try:
        hit = e.strike(part, "no-op", search=shortened(e.search, 2), threat=nothing)
    except Unavailable:  # that is for R4 to say
        hit = e.strike(part, "no-op", search=_stay, threat=nothing)
    moved = float((hit.x - part.x).abs().max())
    lost = share(hit.success)
    with torch.no_grad():
        target = e.attack.target(part, e.streams("no-op target", part))
        margin = float((hit.gain - e.attack.gain(part.z, target, part)).mean().abs())
    detail = (
        f"images change by {moved:.2g}, margins by {margin:.2g} on average, and {percent(lost)} of the right "
        f"queries {e.words.lost} without a change"
    )
    limit = 0.0 if e.passes == 1 else tolerance(lost, len(part))
    close = margin <= CLOSE or e.passes > 1
    good = moved <= SAME and lost <= limit and close
    return found("R2", "pass" if good else "fail", lost, detail)


def _stay(encoder: Any, x0: Tensor, objective: Any, threat: Any, generator: Any = None) -> Tensor:
    """Search nothing."""
    return x0.clone()


def constraint_audit(e: Examination) -> Finding:
    """R3: every stored output and the primary one lie inside the threat; 8 bits hold the success."""
    worst, outside, images = 0.0, 0, 0
    for _, outcome, _, covered in e.results:
        if outcome.x.ndim < 3 and outcome.x.numel() == 0:  # images were not kept
            continue
        rows = torch.arange(len(e.task), device=e.device) if covered is None else covered.to(e.device)
        for some in chunks(len(rows), 1024):
            excess = violation(e, outcome.x[some], e.task.rows(rows[some]))
            worst, outside = max(worst, float(excess.max())), outside + int((excess > SAME).sum())
            images += len(excess)
    try:
        hit = e.primary
    except Unavailable:
        if not images:
            raise
        status: Status = "fail" if outside else "pass"
        return found("R3", status, min(worst, 1e9), f"{outside} of {images} images outside")
    excess = violation(e, hit.x, e.part)
    worst, outside = max(worst, float(excess.max())), outside + int((excess > SAME).sum())
    images += len(excess)
    if outside:
        detail = f"{outside} of {images} images break the constraint, by up to {worst:.3g}"
        return found("R3", "fail", min(worst, 1e9), detail)
    if not _is_image(e):
        return found("R3", "pass", 0.0, f"{images} outputs inside; inputs are no 8-bit images")
    lost = share(hit.success) - share(e.broken((hit.x * 255).round() / 255, e.part))
    detail = f"{images} images inside; rounded to 8 bits the attack loses {percent(max(lost, 0.0))}"
    return found("R3", at_most(lost, 0.02, 0.05), lost, detail)


def _is_image(e: Examination) -> bool:
    return getattr(e.threat, "bounds", None) == (0.0, 1.0)


def violation(e: Examination, x: Tensor, part: RetrievalTask) -> Tensor:
    """Return how far images of some queries lie outside the threat, infinite for NaN: (n,)."""
    near, x, x0 = e.near(part), x.double(), part.x.to(x.device).double()
    excess = (x - near.project(x, x0)).abs().flatten(1).amax(1)
    if (size := getattr(near, "size", None)) is not None:
        excess = torch.maximum(excess, size(x, x0) - near.eps)
    if _is_image(e):
        excess = torch.maximum(excess, torch.maximum(-x, x - 1).flatten(1).amax(1))
    return excess.nan_to_num(nan=torch.inf)


def oracle_swap(e: Examination) -> Finding:
    """R15: a query replaced by an image of another class must count as broken.

    Among clusters: replaced by a reference of another cluster it must count as broken and be given that
    cluster; see :func:`clear_references`.
    """
    part = e.few
    if e.clusters is not None:
        return _cluster_swap(e, part)
    other = e.task.y[None, :] != part.y[:, None]
    other &= (e.task.self_index >= 0)[None, :]
    if bool(other.any(1).all()):
        rows = choose(other, e.streams("swap", part))[:, 0]
        z, what = embed(e.task.encoder, e.task.x[rows], BATCH), "images"
    else:
        other = e.task.gallery.y[None, :] != part.y[:, None]
        if not bool(other.any(1).all()):
            raise Unavailable("hand in a gallery of more than one class")
        rows = choose(other, e.streams("swap", part))[:, 0]
        z, what = e.task.gallery.z[rows], "embeddings"
    value = share(hits(z.double(), _double(part)) == 0)
    detail = (
        f"{percent(value)} of {len(part)} queries count as broken once replaced by {what} of another class"
    )
    return found("R15", "pass" if value == 1 else "fail", value, detail)


def _cluster_swap(e: Examination, part: RetrievalTask) -> Finding:
    z, member = clear_references(e)
    other = member[None, :] != part.y[:, None]
    able = other.any(1)
    if not bool(able.any()):
        raise Unavailable("no reference of another cluster lies clearly in its own")
    part, other = part.rows(able), other[able]
    rows = choose(other, e.streams("swap", part))[:, 0]
    swapped, double = z[rows].double(), _double(part)
    given = hits(swapped, replace(double, y=member[rows])) > 0
    value = share(given & (hits(swapped, double) == 0))
    detail = (
        f"{percent(value)} of {len(part)} queries count as broken, and get the right cluster, once replaced "
        "by a reference of another one"
    )
    return found("R15", "pass" if value == 1 else "fail", value, detail)


def clear_references(e: Examination) -> tuple[Tensor, Tensor]:
    """Return embeddings of the references that lie clearly in their own clusters, and these: (r, e), (r,).

    The clusters are looked for anew, at the means of what the encoder makes of their references now: a
    reference lies clearly in its own when it is nearer to that mean than to all others, by more than the
    median of all references for which this is so. Class means as centroids leave some references in other
    clusters; centroids of another encoder or pipeline put all of them elsewhere, which is what R15 is after.
    """
    task = e.clusters
    images, member = e.references
    assert task is not None
    z = embed(e.decides, images, BATCH)
    try:
        means = cluster_means(z, member, len(task.gallery.z), task.spherical)
    except DataError as reason:
        raise Unavailable(str(reason)) from reason
    if len(means) < 2:
        raise Unavailable("there is a single cluster")
    leads = []
    for rows in chunks(len(z), 1024):
        d = task.distance.matrix(z[rows].double(), means.double())
        own = d.gather(1, member[rows, None])
        rival = d.scatter(1, member[rows, None], torch.inf).amin(1)
        leads.append(rival - own[:, 0])
    lead = torch.cat(leads)
    if not bool((lead > 0).any()):
        raise Unavailable("no reference is nearest to the mean of its own cluster")
    clear = lead >= lead[lead > 0].median()
    return z[clear], member[clear]


def _double(part: RetrievalTask) -> RetrievalTask:
    """Return a task whose distances are computed in float64, so that rounding decides nothing."""
    g = part.gallery
    return replace(part, z=part.z.double(), gallery=Gallery(g.z.double(), g.y, g.ids))


def silent_success(e: Examination) -> Finding:
    """R23: count queries that an iterate broke and the returned image does not."""
    hit = e.primary
    if hit.ever is None or not shows_iterates(e.search):
        return skipped("R23", "the search does not show its iterates")
    kept = hit.success
    if e.precision != "fp32":  # the search saw every point, the returned one as well, in low precision
        seen = embed(in_precision(e.task.encoder, e.precision), hit.x, BATCH)
        kept = kept | (hits(seen, e.part) == 0)
    value = share(hit.ever & ~kept)
    count = int((hit.ever & ~kept).sum())
    detail = f"{count} of {len(e.part)} queries were broken on the way and are not in the end"
    e.found["iterates"] = hit.ever
    return found("R23", "pass" if count == 0 else "fail", value, detail)


def robust_at_most_clean(e: Examination) -> Finding:
    """R25: no measure of the suite may look better under attack than on the same queries without.

    Measures that a task does not have are left out: of clusters without names, the accuracy.
    """
    if not e.results:
        return skipped("R25", "hand in the results of a suite")
    worst, name, failed = -1.0, "", []
    for entry, outcome, *_ in e.results:
        for metric, higher in entry.higher_is_robust.items():
            if metric not in outcome.attacked:
                continue
            clean, attacked = outcome.clean[metric].double(), outcome.attacked[metric].double()
            better = (attacked - clean) * (1 if higher else -1)
            n, spread = len(better), float(better.std()) if len(better) > 1 else 0.0
            limit = max(0.01, 1.64 * spread / n**0.5)
            if float(better.mean()) > limit:
                failed.append(f"{entry.label} {metric}")
            if float(better.mean()) > worst or not name:
                worst, name = float(better.mean()), f"{entry.label} {metric}"
    if failed:
        return found("R25", "fail", worst, f"better under attack than without: {', '.join(failed)}")
    detail = f"closest is {name}: under attack {worst:+.3g} against clean, on the side of the defense"
    return found("R25", "pass", worst, detail)


class _Modes(nn.Module):
    """An encoder that notes whether any of its parts is in training mode."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.training_seen: set[bool] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.training_seen.add(any(module.training for module in self.encoder.modules()))
        return cast(Tensor, self.encoder(x))


def mode(e: Examination) -> Finding:
    """R30: the mode that the search sees, and whether it matters."""
    if not isinstance(e.task.encoder, nn.Module):
        return found("R30", "pass", 0.0, "the encoder is no module and has no modes")
    part = e.few
    modes = _Modes(e.task.encoder)
    modes.training = e.task.encoder.training
    before = {module: module.training for module in e.task.encoder.modules()}
    e.strike(part, "mode", search=shortened(e.search, 1), encoder=modes)
    if any(module.training != was for module, was in before.items()):
        return found("R30", "fail", 1.0, "the search leaves the encoder in another mode than it found it")
    wanted = e.deployed_mode == "train"
    if modes.training_seen == {wanted}:
        return found(
            "R30", "pass", 0.0, f"the search sees the encoder in {e.deployed_mode} mode, as deployed"
        )
    with frozen(e.task.encoder), torch.no_grad():
        still = e.task.encoder(part.x)
    moving = _in_training_mode(e.task.encoder, part.x)
    value = float((F.normalize(still, dim=1) - F.normalize(moving, dim=1)).norm(dim=1).max())
    seen = "train" if True in modes.training_seen else "eval"
    detail = f"deployed in {e.deployed_mode} mode, searched in {seen} mode; embeddings differ by {value:.2g}"
    return found("R30", "pass" if value <= CLOSE else "fail", value, detail)


def _in_training_mode(encoder: nn.Module, x: Tensor) -> Tensor:
    """Embed in training mode and put modes and running statistics back."""
    modes = {module: module.training for module in encoder.modules()}
    buffers = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    try:
        encoder.train()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return cast(Tensor, encoder(x))
    finally:
        for module, training in modes.items():
            module.training = training
        for name, buffer in encoder.named_buffers():
            buffer.copy_(buffers[name])
