"""The page: one file that asks the network for nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from msgspec import UNSET

from attnbench import __version__
from attnbench.ledger import Kind, Record, Status
from attnbench.ledger.canonical import canonical_bytes
from attnbench.protocol.bands import Gate
from attnbench.report import words
from attnbench.report.appraisal_table import beside_words, gate_words
from attnbench.report.decode_notes import notes
from attnbench.report.page import claims, origins, palette, remarks, sessions
from attnbench.report.page.cells import CellRuns, Ladder, cells, ladders
from attnbench.report.page.contexts import against_context, ladder_title
from attnbench.report.page.drawing import Drawing
from attnbench.report.page.forest import forest
from attnbench.report.page.instrument import (
    Control,
    aa_plot,
    bias_plot,
    controls,
    injected_plot,
    newest_calibrations,
    order_counts,
    order_plot,
)
from attnbench.report.page.plain import first_upper, plain, shorten
from attnbench.report.page.reading import SHORT, Appraised, Calibration, Reading, day
from attnbench.report.page.tables import Table, ms, result_tables, scoreboard_table
from attnbench.report.text_maps import excerpt_lines, kept_drawing

MOST_TAINTED = 20  # records that a retraction names
LONGEST_JSON = 6_000  # characters of a record that the page holds
MEMORY_COLUMNS = {
    "reachable_bytes": "reachable",
    "allocated_bytes": "allocated",
    "prefill_peak_bytes": "peak of prefill",
    "decode_peak_bytes": "peak of decode",
    "reserved_bytes": "reserved",
    "process_bytes": "process",
}
SECTIONS = {
    "claims": "Claims",
    "results": "Results by cell",
    "context": "Against context",
    "quality": "Quality gates",
    "instrument": "The instrument",
    "remarks": "Taken back, put right, doubted",
    "registrations": "Registered beforehand",
    "sessions": "Sessions",
    "environments": "Where it ran",
    "records": "Records",
}


@dataclass(frozen=True)
class Shown:
    """A record as the page holds it: its canonical line, cut off where it is long."""

    record: Record
    status: str
    about: str
    json: str
    whole: int


@dataclass(frozen=True)
class Contents:
    """All that a page shows, ready to be written down."""

    reading: Reading

    @cached_property
    def all_claims(self) -> tuple[claims.Claim, ...]:
        return claims.scoreboard(self.reading)

    @cached_property
    def statements(self) -> tuple[claims.Claim, ...]:
        """Those that have none."""
        return tuple(claim for claim in self.all_claims if not claim.has_rule)

    @cached_property
    def claims(self) -> tuple[claims.Claim, ...]:
        """Those that have a rule: only they are counted."""
        return tuple(claim for claim in self.all_claims if claim.has_rule)

    @cached_property
    def cells(self) -> tuple[CellRuns, ...]:
        return cells(self.reading)

    @cached_property
    def ladders(self) -> tuple[Ladder, ...]:
        return ladders(self.cells)

    @cached_property
    def controls(self) -> tuple[Control, ...]:
        return controls(self.cells)

    @cached_property
    def calibrations(self) -> tuple[Calibration, ...]:
        return newest_calibrations(self.reading)

    @cached_property
    def sessions(self) -> tuple[sessions.RunSessions, ...]:
        return sessions.sessions(self.reading)

    @cached_property
    def kept_maps(self) -> tuple[tuple[Appraised, Drawing], ...]:
        """What arms were seen to keep of the text, those that count."""
        found = []
        for each in self.reading.appraisals:
            if each.result.kept is not UNSET and each.status is Status.LIVE:
                name = f"kept-{each.record.id[:SHORT]}"
                found.append((each, kept_drawing(each.result.kept, each.result.arm, name)))
        return tuple(found)

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        scores = (scoreboard_table(self.claims),) if self.claims else ()
        return (*scores, *result_tables(self.cells))

    def drawings(self) -> Iterator[Drawing]:
        """Every figure of the page."""
        yield from (drawing for each in self.cells if (drawing := forest(each.shown)))
        yield from (drawing for each in self.ladders if (drawing := against_context(each)))
        if self.controls:
            yield aa_plot(self.controls)
            yield order_plot(self.controls)
        yield from (drawing for _, drawing in self.kept_maps)
        yield from (drawing for each in self.calibrations if (drawing := calibration_plot(each)))

    def standing(self) -> dict[str, int]:
        """How many records stand, are retracted or tainted."""
        known = list(self.reading.state.statuses.values())
        return {status.value: known.count(status) for status in Status}


def calibration_plot(calibration: Calibration) -> Drawing | None:
    found = calibration.result
    if found.order_effect:
        return bias_plot(calibration, found.order_effect)
    if found.findings and found.findings.levels:
        return injected_plot(calibration, found.findings.levels)
    return None


def page(contents: Contents) -> str:
    """The HTML; the same ledger gives the same bytes."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("attnbench.report.page", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "tone": palette.tone,
        "day": day,
        "short": lambda id: id[:SHORT],
        "inline": _inline,
        "breakable": _breakable,
        "few_words": remarks.in_few_words,
        "first_upper": first_upper,
        "shorten": lambda text, longest: shorten(plain(text), longest),
    }
    template = environment.get_template("report.html.j2", globals=_VOCABULARY)
    return template.render(contents=contents, **_said_of(contents))


_VOCABULARY: dict[str, Any] = {
    "version": __version__,
    "light": palette.LIGHT,
    "dark": palette.DARK,
    "claims": claims,
    "origins": origins,
    "session_endings": sessions.ENDINGS,
    "words": words,
    "ms": ms,
    "gate_words": gate_words,
    "beside_words": beside_words,
    "excerpt_lines": lambda said: map(str.strip, excerpt_lines(said)),
    "gates": list(Gate),
    "forest": forest,
    "against_context": against_context,
    "ladder_title": ladder_title,
    "aa_plot": aa_plot,
    "order_plot": order_plot,
    "order_counts": order_counts,
    "calibration_plot": calibration_plot,
    "most_tainted": MOST_TAINTED,
    "memory_columns": MEMORY_COLUMNS,
    "mib": lambda count: f"{count / words.MIB:,.1f}",
    "percent": lambda value: words.ABSENT if value is UNSET else f"{value:.3%}",
    "said": lambda verdicts: ", ".join(f"{n} {word}" for word, n in sorted(verdicts.items())),
    "notes": lambda run: list(notes([arm.result for arm in run.arms], absolute=run.on_gpu)),
}


def _said_of(contents: Contents) -> dict[str, Any]:
    reading = contents.reading
    environments = origins.environments(reading)
    records = _records(reading, {each.record.id for each in environments})
    return {
        "reading": reading,
        "doubts": reading.doubts,
        "standings": Counter(claim.standing for claim in contents.claims),
        "totals": sessions.total(contents.sessions),
        "remarks": remarks.remarks(reading),
        "registrations": origins.registrations(reading),
        "environments": environments,
        "records": records,
        "led_to": {shown.record.id for shown in records},
        "sections": _sections(contents),
    }


def _sections(contents: Contents) -> dict[str, str]:
    """The anchors of the page's parts, and their titles."""
    has = {
        "context": bool(contents.ladders),
        "quality": bool(contents.reading.appraisals),
        "instrument": bool(contents.controls or contents.calibrations),
        "environments": any(True for _ in contents.reading.environments()),
    }
    return {anchor: title for anchor, title in SECTIONS.items() if has.get(anchor, True)}


def _inline(drawing: Drawing) -> object:
    from markupsafe import Markup

    return Markup(drawing.inline())  # serialised from a tree, in which text is text


def _breakable(name: str) -> object:
    """A name that may go on in the next line after each of its commas."""
    from markupsafe import Markup, escape

    return Markup(",<wbr>").join(escape(plain(part)) for part in name.split(","))


def _shown(value: object) -> object:
    """Text from the ledger without what controls a reader's view; markup of our own as it is."""
    return plain(value) if type(value) is str else value


def _records(reading: Reading, of_places: set[str]) -> list[Shown]:
    """Those that the page leads to: all but sessions that closed, and what bears on no figure."""
    found = sessions.sessions(reading)
    wanted = of_places | {run.first.id for run in found}
    wanted |= {each.record.id for run in found for each in run.unfinished}
    other = frozenset({Kind.SESSION, Kind.CHECKPOINT, Kind.REPAIR})
    return [
        _record(record, reading)
        for record in reading.shown
        if record.id in wanted or record.kind not in other
    ]


def _record(record: Record, reading: Reading) -> Shown:
    members = {name: getattr(record, name) for name in record.__dataclass_fields__}
    line = canonical_bytes(members).decode()
    return Shown(
        record=record,
        status=reading.status(record).value,
        about=remarks.in_few_words(record),
        json=line[:LONGEST_JSON],
        whole=len(line),
    )
