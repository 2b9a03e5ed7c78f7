"""How good a figure of energy is: the grade that stands beside it wherever it is shown.

- E: an estimate, a model of CPU time.
- 1: counters of components (RAPL, NVML, drm, a SoC's rails).
- 2: calibrated to the wall on this machine.
- 3: a meter of the whole machine.

Figures of different grades are never compared or summed in silence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from powerbench_agent.core.model import ESTIMATE

if TYPE_CHECKING:
    from collections.abc import Iterable

ESTIMATED, COMPONENTS, CALIBRATED, MACHINE = _WORST_FIRST = ("E", "1", "2", "3")
_CALIBRATED_SOURCE = "calibrated"
_WHOLE_MACHINE = "platform"  # the component that is everything behind one plug


def grade_of(parts: Iterable[tuple[str, str]]) -> str:
    """Return the grade of a sum of parts, each (component, source): that of its worst part; "" of none."""
    grades = {_grade_of_part(component, source) for component, source in parts}
    return next((grade for grade in _WORST_FIRST if grade in grades), "")


def _grade_of_part(component: str, source: str) -> str:
    if source == ESTIMATE:
        return ESTIMATED
    if source == _CALIBRATED_SOURCE:
        return CALIBRATED
    return MACHINE if component == _WHOLE_MACHINE else COMPONENTS


def with_grade(source: str, grade: str) -> str:
    """Return a source as tables name it: "rapl (1)"."""
    return f"{source} ({grade})" if grade else source
