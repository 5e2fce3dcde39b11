"""The checks by id."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from typing import NamedTuple

from . import (
    blackbox,
    certificates,
    collapse,
    deployment,
    gradients,
    leakage,
    objectives,
    pipeline,
    planted,
    power,
    selftest,
    strength,
)
from .examination import Examination
from .finding import Finding, Word
from .material import Level
from .texts import TEXTS


class Check(NamedTuple):
    """One check.

    Attributes
    ----------
    id
        ``"R1"`` to ``"R36"``.
    run
        The check itself.
    level
        The least level at which it runs.
    cost
        When there is a budget, cheap ones go first: 0 a few passes, 1 about one attack, 2 many attacks.
    group
        The verdict that a failure leads to.
    needs
        Fields of the examination of which at least one has to be given.
    """

    id: str
    run: Callable[[Examination], Finding]
    level: Level
    cost: int
    group: Word
    needs: tuple[str, ...] = ()

    def possible(self, e: Examination) -> bool:
        """Return whether what it needs was handed in."""
        given = [getattr(e, name) for name in self.needs]
        empty = (value is None or (isinstance(value, Sized) and not len(value)) for value in given)
        return not self.needs or not all(empty)


def _check(
    name: str,
    run: Callable[[Examination], Finding],
    cost: int,
    level: Level = "quick",
    needs: tuple[str, ...] = (),
) -> Check:
    return Check(name, run, level, cost, TEXTS[name].group, needs)


CHECKS: Mapping[str, Check] = {
    check.id: check
    for check in (
        _check("R1", pipeline.determinism, 0),
        _check("R2", pipeline.no_op, 0),
        _check("R3", pipeline.constraint_audit, 1),
        _check("R4", gradients.gradient_exists, 0),
        _check("R5", gradients.gradient_correct, 0),
        _check("R6", gradients.landscape, 0),
        _check("R7", gradients.inner_loop, 0),
        _check("R8", strength.single_step, 1),
        _check("R9", strength.more_steps, 1),
        _check("R10", strength.last_steps, 1),
        _check("R11", strength.restarts, 2, "full"),
        _check("R12", strength.step_size, 2, "full"),
        _check("R13", strength.monotone, 1),
        _check("R14", strength.large_budget, 1),
        _check("R15", pipeline.oracle_swap, 0),
        _check("R16", blackbox.random_noise, 1),
        _check("R17", blackbox.black_box, 2, "full"),
        _check("R18", blackbox.top_k_only, 2, "full"),
        _check("R19", blackbox.transfer, 1, "full", needs=("twin", "surrogates", "parts")),
        _check("R20", objectives.diversity, 1),
        _check("R21", objectives.attack_control, 1, needs=("twin",)),
        _check("R22", selftest.self_test, 0),
        _check("R23", pipeline.silent_success, 1),
        _check("R24", collapse.collapse, 0),
        _check("R25", pipeline.robust_at_most_clean, 0, needs=("results",)),
        _check("R26", certificates.against_attack, 1, needs=("certificate",)),
        _check("R27", certificates.below_attacks, 1, needs=("certificate",)),
        _check("R28", objectives.ensemble, 2, "full", needs=("parts",)),
        _check("R29", deployment.index_in_the_loop, 1, needs=("index",)),
        _check("R30", pipeline.mode, 0),
        _check("R31", deployment.precision, 2),
        _check("R32", power.power, 0),
        _check("R33", power.seed_spread, 0, needs=("claim",)),
        _check("R34", planted.binarisation, 2, "full"),
        _check("R35", objectives.untargeted, 1),
        _check("R36", leakage.leakage, 0),
    )
}
"""Every check, in the order of the page."""
