"""The standing of a few records of a large ledger: `fold` of these and what bears on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from attnbench.ledger.folding import OPENED, State, fold, judged_by
from attnbench.ledger.record import Envelope, Kind, Record
from attnbench.ledger.survey import Survey, survey

_LIST = msgspec.json.Decoder(list[str])


def standing(walk: Survey[Any], records: Sequence[Record], *, citing: bool = False) -> State:
    """What `fold` of the whole ledger says of `records`; of what cites them only with `citing`.

    On them bear the retractions and other remarks, once anything is retracted what they derive
    from over any number of steps, and, for a session that was opened, its end.
    """
    remarks = walk.records(walk.remarks)
    bearing = {record.seq: record for record in (*records, *remarks)}
    if any(record.kind is Kind.RETRACTION for record in remarks):
        bearing |= _ancestors(walk, records, _baselines(remarks))
    opened = [record for record in records if _is_opening(record)]
    asked = {record.id for record in (records if citing else opened)}
    bearing |= _by_seq(walk.records(_children(walk, asked)))
    if opened and walk.loose_ends:
        bearing |= _by_seq(walk.records([*walk.loose_ends, *_openings(walk)]))
    return fold(bearing[seq] for seq in sorted(bearing))


def descendants(walk: Survey[Any], roots: Collection[str]) -> frozenset[str]:
    """The ids of all records that derive from one of `roots`, over any number of steps."""
    judged = _judged(walk.records(walk.remarks))
    found, new = set(roots), set(roots)
    while new:
        citing = {walk.id_of(seq) for seq in _children(walk, new)}
        new = citing.union(*(judged[id] for id in new & judged.keys())) - found
        found |= new
    return frozenset(found - set(roots))


def shaken(walk: Survey[Any]) -> frozenset[int]:
    """The numbers of the lines that may not be live: what was ever retracted, and its heirs."""
    remarks = walk.records(walk.remarks)
    roots = {str(r.body.get("target", "")) for r in remarks if r.kind is Kind.RETRACTION}
    heirs = dict.fromkeys(roots | descendants(walk, roots), 0) if roots else {}
    return frozenset(walk.numbers(heirs))


def around(walk: Survey[Any], record: Record, state: State) -> dict[str, Record]:
    """What a record cites, what cites it and what remarks on it, by id, as far as it is here."""
    ids = (*record.cites, *state.cited_by.get(record.id, ()), *state.remarks.get(record.id, ()))
    return {each.id: each for each in walk.records(walk.numbers(dict.fromkeys(ids, record.seq)))}


def _by_seq(records: Iterable[Record]) -> dict[int, Record]:
    return {record.seq: record for record in records}


def _is_opening(record: Record) -> bool:
    return record.kind is Kind.SESSION and record.body.get("phase") == OPENED


def _children(walk: Survey[Any], ids: Collection[str]) -> list[int]:
    """The numbers of the lines that cite one of `ids`."""
    if not ids:
        return []
    wanted = frozenset(ids)
    return [seq for seq, cites in walk.links() if not wanted.isdisjoint(_listed(cites))]


def _judged(remarks: Iterable[Record]) -> dict[str, set[str]]:
    """What a record that was ever retracted was the baseline of, by its id."""
    judged: defaultdict[str, set[str]] = defaultdict(set)
    for remark in remarks:
        if remark.kind is Kind.RETRACTION:
            judged[str(remark.body.get("target", ""))].update(judged_by(remark))
    return dict(judged)


def _baselines(remarks: Iterable[Record]) -> dict[str, set[str]]:
    """The same by what was judged: its baselines that were ever retracted."""
    baselines: defaultdict[str, set[str]] = defaultdict(set)
    for target, ids in _judged(remarks).items():
        for id in ids:
            baselines[id].add(target)
    return dict(baselines)


def _ancestors(
    walk: Survey[Any], records: Iterable[Record], baselines: Mapping[str, Collection[str]]
) -> dict[int, Record]:
    """All that `records` derive from, over any number of steps, by number."""
    found: dict[int, Record] = {}
    new = list(records)
    while new:
        citing = {
            id: record.seq
            for record in new
            for id in (*record.cites, *baselines.get(record.id, ()))
        }
        new = walk.records(seq for seq in walk.numbers(citing) if seq not in found)
        found |= _by_seq(new)
    return found


def _listed(cites: bytes) -> list[str]:
    return _LIST.decode(b"[%b]" % cites)


def _openings(walk: Survey[Any]) -> list[int]:
    """All sessions that were opened: one that ends without a citation ends the last of its name."""
    return [seq for seq, _ in survey(walk.path, opening, source=walk.source).finds]


def opening(text: bytes, about: Envelope) -> bool | None:
    """A look for lines that open a session."""
    return (about.kind == b"session" and b'"phase":"opened"' in text) or None
