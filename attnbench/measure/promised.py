"""Carries a protocol file out: every cell of it, then its verdict on the claim, in the ledger.

The cells are measured by the same code as `decode` (an order effect by that of `calibrate`). A run
that stopped goes on from what it had closed; what it had recorded is not recorded twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from attnbench.errors import AttnbenchError, UsageError
from attnbench.ledger import (
    Json,
    Kind,
    Ledger,
    Record,
    Status,
    account,
    fold,
    timing_of,
)
from attnbench.measure.answers import PilotResult
from attnbench.measure.appraising import Appraiser
from attnbench.measure.calibrating import Calibrator
from attnbench.measure.chosen import PilotArm, pilot_alone
from attnbench.measure.conclusion import Concluded, claim_body, text_of
from attnbench.measure.conductor import Conductor
from attnbench.measure.estimate import in_words, minutes
from attnbench.measure.judge import nothing
from attnbench.measure.layout import cell_of
from attnbench.measure.past import Past, past_sessions
from attnbench.measure.plan import Plan
from attnbench.measure.promised_plan import labels_of, order_plan, plans_of, quality_plans
from attnbench.measure.reporter import Reporter
from attnbench.measure.verdicts import arm_results
from attnbench.measure.workers import Runner, new_run
from attnbench.protocol.appraisal import ArmQuality
from attnbench.protocol.calibration_result import CalibrationResult
from attnbench.protocol.cell import Cell
from attnbench.protocol.document import Quantity
from attnbench.protocol.imported_rule import imported_of
from attnbench.protocol.judgement import (
    Judgement,
    Seen,
    judge,
    order_seen,
    quality_seen,
    seen_in,
)
from attnbench.protocol.reading import Source
from attnbench.protocol.result import ArmResult, Promise


class PromisedRun:
    """One run of one protocol file, from its beginning or from where it stopped.

    `run` does a task in a process of its own; `resume` is the id of a run that stopped.
    """

    def __init__(
        self,
        source: Source,
        promise: Promise,
        ledger: Ledger,
        reporter: Reporter,
        *,
        run: Runner,
        resume: str = "",
        unchanged: Callable[[], None] = nothing,
    ) -> None:
        self.name = resume or new_run()
        self._require_unchanged = unchanged
        self._source = source
        self._file = source.file
        self._promise = promise
        self._ledger = ledger
        self._reporter = reporter
        self._resumes = bool(resume)
        self._run_task = run
        self._decides: Record | None = None  # the imported claim
        self._cites: list[str] = []
        self._failed: list[AttnbenchError] = []

    def conclude(self) -> Concluded:
        """Measure what is missing of every cell, judge the claim, record both.

        An exploratory run decides no imported claim. Raises UsageError for another rule than that
        claim's, before anything is measured.
        """
        if not self._promise.exploratory:
            self._decides = imported_of(self._records(), self._file)
        if self._file.claim.quantity is Quantity.ORDER_EFFECT:
            found = self._order_effect()
            self._require_unchanged()
            judgement = judge(self._file, [order_seen(found)])
            return self._concluded(judgement, order_effect=found)
        if self._file.is_of_quality:
            return self._by_quality()
        results: list[ArmResult] = []
        alone: dict[Cell, tuple[PilotArm, ...]] = {}
        seen: list[Seen] = []
        for plan in plans_of(self._file, self._promise):
            of_cell, of_pilot = self._measured(plan)
            results += of_cell
            alone |= of_pilot
            seen.append(seen_in(self._file, of_cell, labels_of(self._file, plan.device)))
        self._require_unchanged()
        return self._concluded(judge(self._file, seen), results=tuple(results), alone=alone)

    def _measured(
        self, plan: Plan
    ) -> tuple[tuple[ArmResult, ...], dict[Cell, tuple[PilotArm, ...]]]:
        """One cell's results, recorded."""
        self._require_unchanged()
        self._tell(plan)
        conductor = Conductor(
            plan,
            self._ledger,
            self._reporter,
            run=self._run_task,
            past=self._past(plan),
            name=self.name,
        )
        evidence = conductor.conduct()
        self._failed += evidence.failed
        self._require_unchanged()
        results = arm_results(evidence)
        self._record(results, evidence.cites)
        return results, pilot_alone(evidence)

    def _by_quality(self) -> Concluded:
        """By the quality gates of every cell; nothing is timed."""
        results: list[ArmQuality] = []
        seen: list[Seen] = []
        plans = quality_plans(self._file, self._promise)
        for plan, part in zip(plans, self._file.cell, strict=True):
            self._reporter.note(
                f"run {self.name}: {len(plan.arms)} arms, {in_words(plan.minutes)} on "
                f"{plan.cell.facts.name}"
            )
            appraiser = Appraiser(
                plan,
                self._ledger,
                self._reporter,
                run=self._run_task,
                unchanged=self._require_unchanged,
                promise=self._promise,
                past=self._past(plan.cell),
                name=self.name,
            )
            with self._reporter.stage(f"cell of {plan.cell.context} tokens"):
                found = appraiser.judged()
            self._record(found.results, appraiser.cites)
            results += found.results
            labels = labels_of(self._file, plan.cell.device)
            seen.append(quality_seen(self._file, part, found.results, labels))
        return self._concluded(judge(self._file, seen), appraisals=tuple(results))

    def _order_effect(self) -> CalibrationResult:
        plan = order_plan(self._file, self._promise)
        calibrator = Calibrator(
            plan,
            self._ledger,
            self._reporter,
            past=self._past(plan.cell),
            run=self._run_task,
            name=self.name,
        )
        found = calibrator.measured()
        self._record([found], calibrator.cites)
        return found

    def _tell(self, plan: Plan) -> None:
        for label, why in plan.skipped:
            self._reporter.note(f"left out: {label}: {why}")
        for remark in plan.remarks:
            self._reporter.note(f"note: {remark}")
        self._reporter.note(
            f"run {self.name}: {len(plan.arms)} arms, {in_words(minutes(plan))} on "
            f"{plan.facts.name}"
        )

    def _past(self, plan: Plan) -> Past | None:
        """What this run has of a cell already; raises UsageError where the model is another one."""
        if not self._resumes:
            return None
        records = self._records()
        cell = msgspec.to_builtins(cell_of(plan, 0))
        past = past_sessions(self._ledger, records, self.name, cell)
        pilot = past.results.get("pilot") if past else None
        if isinstance(pilot, PilotResult) and plan.info.identity:
            before = pilot.session.model_identity
            if before != plan.info.identity:
                raise UsageError(
                    f"run {self.name} was measured on another model that is called "
                    f"{plan.info.spec}",
                    hint="sessions of one run are alike; start a new one without --resume",
                )
        return past

    def _record(
        self,
        results: Sequence[ArmResult | CalibrationResult | ArmQuality],
        sessions: Sequence[str],
    ) -> None:
        """Append the results that this run has not recorded yet."""
        registration = [self._promise.registration] if self._promise.registration else []
        known = self._recorded()
        for result in results:
            body = msgspec.to_builtins(result)
            id = known.get(_place_of(body))
            if id is None:
                id = self._ledger.append(Kind.RESULT, body, cites=[*registration, *sessions]).id
            self._cites.append(id)

    def _recorded(self) -> dict[bytes, str]:
        """The results of this run that stand in the ledger, by cell and arm."""
        if not self._resumes:
            return {}
        records = self._records()
        statuses = fold(records).statuses
        return {
            _place_of(record.body): record.id
            for record in records
            if record.kind is Kind.RESULT
            and record.body.get("run") == self.name
            and statuses[record.id] is Status.LIVE
        }

    def _concluded(
        self,
        judgement: Judgement,
        *,
        results: tuple[ArmResult, ...] = (),
        alone: Mapping[Cell, tuple[PilotArm, ...]] | None = None,
        order_effect: CalibrationResult | None = None,
        appraisals: tuple[ArmQuality, ...] = (),
    ) -> Concluded:
        records = self._records()
        of_run = account(records, lambda record: record.body.get("run") == self.name)
        of_protocol = account(records, self._is_of_protocol)
        text = text_of(self._source, judgement, self._promise)
        claim = self._ledger.append(
            Kind.CLAIM,
            {
                **claim_body(self._source, judgement, self._decides),
                "protocol": self._promise.registration or None,
                "rule_record": self._decides.id if self._decides else None,
                "run": self.name,
                "text": text,
                "promise": msgspec.to_builtins(self._promise),
                "sessions": msgspec.to_builtins(of_run),
                "sessions_of_protocol": msgspec.to_builtins(of_protocol),
            },
            cites=[*self._grounds(), *self._cites],
        )
        by_id = {record.id: record for record in (*records, claim)}
        return Concluded(
            source=self._source,
            promise=self._promise,
            run=self.name,
            judgement=judgement,
            text=text,
            claim_record=claim.id,
            timing=timing_of(claim, by_id),
            sessions=of_run,
            of_protocol=of_protocol,
            results=results,
            alone=alone or {},
            order_effect=order_effect,
            appraisals=appraisals,
            failed=tuple(self._failed),
            decides=self._decides,
        )

    def _is_of_protocol(self, record: Record) -> bool:
        return bool(record.body.get("promise", {}).get("protocol") == self._file.id)

    def _grounds(self) -> list[str]:
        """The registration, and the imported claim that is decided."""
        registration = [self._promise.registration] if self._promise.registration else []
        return [*registration, *([self._decides.id] if self._decides else [])]

    def _records(self) -> list[Record]:
        return list(self._ledger.records()) if self._ledger.path.exists() else []


def _place_of(body: Mapping[str, Json]) -> bytes:
    """Which arm of which cell a result is about."""
    return msgspec.json.encode([body.get("cell"), body.get("arm")], order="sorted")
