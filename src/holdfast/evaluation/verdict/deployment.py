"""Does what is deployed hide anything from the attack? R29 (index), R31 (precision)."""

from __future__ import annotations

from torch import Tensor, nn

from ...attacks import hits
from ...attacks.indexed import index_hits
from ...search import LowPrecision, Precision
from ..embed import embed
from .compare import LEVEL, beats, share, tolerance
from .examination import BATCH, Examination
from .finding import Finding, Status
from .texts import at_most, found, percent, skipped


def index_in_the_loop(e: Examination) -> Finding:
    """R29: the score under attack by exact search and by the deployed index, of images or of centroids."""
    if e.index is None:
        return skipped("R29", "hand in index, the deployed search: (n, e), k -> (n, k) gallery rows")
    exact = ~e.primary.success
    deployed = index_hits(e.index, e.primary.z, e.part) > 0
    value = abs(share(deployed) - share(exact))
    detail = f"{e.words.score} under attack: exact {percent(share(exact))}, index {percent(share(deployed))}"
    return found("R29", at_most(value, 0.01, 0.03), value, detail)


def precision(e: Examination) -> Finding:
    """R31: attacks crafted in float32 and in bfloat16, measured on both."""
    if e.level == "quick" and e.precision == "fp32":
        return skipped("R31", "the searches ran in float32; level full tries bfloat16")
    encoder = e.task.encoder
    if not isinstance(encoder, nn.Module):
        return skipped("R31", "the encoder is no module and has no other precision")
    made: dict[Precision, Tensor] = {"fp32": e.strike(e.part, "primary", encoder=encoder).x}
    low = LowPrecision(encoder)
    made["bf16"] = e.strike(e.part, "primary", encoder=low).x

    def breaks(x: Tensor, model: nn.Module) -> Tensor:
        return hits(embed(model, x, BATCH), e.part) == 0

    on_low = {name: breaks(x, low) for name, x in made.items()}
    on_full = {name: breaks(x, encoder) for name, x in made.items()}
    judged = on_low if e.precision == "fp32" else on_full  # searched in bf16, measured in full
    gap = share(judged["fp32"]) - share(judged["bf16"])
    worse = (
        gap > tolerance(share(judged["fp32"]), len(e.part)) and beats(judged["fp32"], judged["bf16"]) < LEVEL
    )
    lost = share(on_full["fp32"]) - share(on_low["fp32"])
    status: Status = "fail" if worse else "pass"
    if not worse and lost > tolerance(share(on_full["fp32"]), len(e.part)):
        status = "warn"
    detail = (
        f"crafted in float32: breaks {percent(share(on_full['fp32']))} in float32 and "
        f"{percent(share(on_low['fp32']))} in bfloat16; crafted in bfloat16: "
        f"{percent(share(on_full['bf16']))} and {percent(share(on_low['bf16']))}"
    )
    return found("R31", status, gap, detail)
