"""Saves a run after every scenario. A full disk must not cost the table: what was not written is reported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from powerbench_agent.bench.run.outcome import describe
from powerbench_agent.bench.run.record import trace_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from powerbench_agent.bench.plan.scenario import Scenario
    from powerbench_agent.bench.run.outcome import Outcome
    from powerbench_agent.bench.run.record import ResultsRecord, Trace


class Saver:
    """A run's two files, and what could not be written to them."""

    def __init__(
        self,
        results: ResultsRecord,
        trace: Trace,
        scenarios: Sequence[Scenario],
        kept: Mapping[str, dict[str, Any]],
    ) -> None:
        """`kept`: what an earlier run of the same file has finished, as it stands there."""
        self.path = results.path if results.earlier else None  # of the results, once they are written
        self.trace: Path | None = None  # likewise
        self._results = results
        self._trace = trace
        self._order = [scenario.name for scenario in scenarios]
        self._kept = kept
        self._saved = self._traced = 0  # outcomes that the results and the trace hold
        self._results_problem = self._trace_problem = ""

    @property
    def unsaved(self) -> str:
        """Why something could not be written; "" if everything was."""
        return self._results_problem or self._trace_problem

    def save(self, outcomes: Sequence[Outcome]) -> None:
        """Write the results file as a whole."""
        described = dict(self._kept)
        for outcome in outcomes:
            described[outcome.scenario.name] = describe(outcome)
        order = dict.fromkeys([*self._order, *described])
        try:
            self._results.save([described[name] for name in order if name in described])
        except OSError as error:
            what = f"cannot write {self._results.path}: {error.strerror or error}"
            self._results_problem = f"{what}; {self._what_is_left(outcomes)}"
        else:
            self._results_problem = ""  # the file is written whole each time
            self._saved = len(outcomes)
            self.path = self._results.path

    def _what_is_left(self, outcomes: Sequence[Outcome]) -> str:
        """Return what the results file holds when it can no longer be written."""
        if self._saved == len(outcomes):
            return f"the file holds {outcomes[-1].scenario.name} without its scores"
        if self._saved or self._results.earlier:
            first_lost = outcomes[self._saved].scenario.name
            return f"the file holds what was measured before {first_lost}"
        return "the figures above are all there is of it"

    def save_trace(self, outcomes: Sequence[Outcome]) -> None:
        """Add the latest readings to the trace."""
        if not self._trace.rows:
            return
        try:
            self._results.reserve()
        except OSError:
            return  # it has no name yet; saving the results reports that
        path = trace_path(self._results.path)
        try:
            self._trace.save(path, self._results.run_id)
        except OSError as error:
            first_lost = outcomes[self._traced].scenario.name
            what = f"cannot write {path}: {error.strerror or error}"
            self._trace_problem = f"{what}; it lacks {first_lost} and what came after"
        else:
            self._trace_problem = ""  # what could not be written before is in it
            self._traced = len(outcomes)
            self.trace = path
