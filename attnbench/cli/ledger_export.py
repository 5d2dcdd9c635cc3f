"""`attnbench ledger export`: records as CSV or Parquet, one row each, or their JSON Schema."""

from __future__ import annotations

import csv
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from attnbench.cli.ledger_filters import Filters, parse_since
from attnbench.cli.ledger_listing import BATCH, listed
from attnbench.cli.ledger_views import standing
from attnbench.cli.options import DEFAULT, AsJson, LedgerPath
from attnbench.errors import AttnbenchError, UsageError
from attnbench.ledger import Kind, Record, State
from attnbench.ledger.storage import explained
from attnbench.ledger.survey import Survey, survey

Row = dict[str, Any]
STDOUT = Path("-")


class Format(StrEnum):
    """What an export is written as."""

    CSV = "csv"
    PARQUET = "parquet"
    JSONSCHEMA = "jsonschema"


def export(
    out: Annotated[
        Path,
        typer.Option("--out", "-o", "--output", help="The file to write; - is standard output."),
    ] = STDOUT,
    form: Annotated[Format, typer.Option("--format", help="What to write.")] = Format.CSV,
    kind: Annotated[Kind | None, typer.Option(help="Only records of this kind.")] = None,
    run: Annotated[str, typer.Option(help="Only runs whose id begins so.")] = "",
    since: Annotated[str, typer.Option(help="Only records from this date or time (UTC) on.")] = "",
    path: LedgerPath = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Write records as a table, one row each, members of bodies as columns; or their JSON Schema.

    Lists are written as JSON. With --json it says what it wrote. Parquet needs pyarrow:
    `pip install 'attnbench[parquet]'`.

    Examples: `attnbench ledger export --kind result --out results.csv`,
    `attnbench ledger export --format parquet --kind result --out results.parquet`,
    `attnbench ledger export --format jsonschema`.
    """
    if as_json and out == STDOUT:
        raise UsageError("--json says what was written to a file", hint="Name a file with --out.")
    if form is Format.JSONSCHEMA:
        done = _write_schema(out)
    else:
        if form is Format.PARQUET:
            _require_pyarrow(out)
        filters = Filters(kind, "", "", "", run, parse_since(since), tainted=False)
        table = _Table(survey(path, filters), filters)
        done = _write_parquet(out, table) if form is Format.PARQUET else _write_csv(out, table)
    if as_json:
        typer.echo(json.dumps({"written": str(out), "format": form.value, **done}, indent=2))


def schema_of_records() -> dict[str, Any]:
    """The JSON Schema of a line, with the bodies that the rooms above the ledger define."""
    from attnbench.ledger.schema import json_schema
    from attnbench.measure.session_record import SESSION_BODIES
    from attnbench.protocol.calibration_result import CalibrationResult
    from attnbench.protocol.result import ArmResult
    from attnbench.protocol.training import ArmTraining

    results = (ArmResult, CalibrationResult, ArmTraining)
    return json_schema({Kind.RESULT: results, Kind.SESSION: SESSION_BODIES})


@dataclass(frozen=True)
class _Table:
    """Rows that are read anew whenever they are asked for, so that none have to be kept."""

    walk: Survey[bool]
    filters: Filters

    def rows(self) -> Iterator[Row]:
        """One row a record, members that it has."""
        return (_row(record, state) for record, state in listed(self.walk, self.filters))

    @property
    def columns(self) -> list[str]:
        """Every member that some row has, in the order in which they first occur."""
        return list(dict.fromkeys(name for row in self.rows() for name in row))


def _row(record: Record, state: State) -> Row:
    return {
        "seq": record.seq,
        "utc": record.utc,
        "id": record.id,
        "kind": record.kind.value,
        "standing": standing(record, state),
        "tool": record.tool,
        "commit": record.commit,
        "cites": " ".join(record.cites),
        **dict(_flat(record.body, "body")),
    }


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}")
    elif isinstance(value, list):
        yield name, json.dumps(value, ensure_ascii=False)
    else:
        yield name, value


def _as_text(row: Row) -> Row:
    """A row as CSV has it: true and false as JSON writes them."""
    return {k: json.dumps(v) if isinstance(v, bool) else v for k, v in row.items()}


def _write_schema(out: Path) -> Row:
    with _opened(out) as file:
        json.dump(schema_of_records(), file, indent=2, ensure_ascii=False)
        file.write("\n")
    return {}


def _write_csv(out: Path, table: _Table) -> Row:
    columns, rows = table.columns, 0
    with _opened(out) as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for rows, row in enumerate(table.rows(), start=1):  # noqa: B007
            writer.writerow(_as_text(row))
    return {"rows": rows, "columns": columns}


def _require_pyarrow(out: Path) -> None:
    if out == STDOUT:
        raise UsageError("Parquet is no text", hint="Name a file with --out.")
    try:
        import pyarrow.parquet  # noqa: F401
    except ModuleNotFoundError:
        raise AttnbenchError(
            "Parquet needs pyarrow, which is not installed",
            hint="pip install 'attnbench[parquet]', or leave --format out for CSV.",
        ) from None


def _write_parquet(out: Path, table: _Table) -> Row:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = _types(table.rows())
    schema = pa.schema([(name, getattr(pa, type_)()) for name, type_ in types.items()])
    written = 0
    with explained(out, "written"), pq.ParquetWriter(out, schema) as writer:
        rows = table.rows()
        while batch := [_typed(row, types) for row in islice(rows, BATCH)]:
            writer.write_table(pa.Table.from_pylist(batch, schema))
            written += len(batch)
    return {"rows": written, "columns": list(types)}


def _types(rows: Iterable[Row]) -> dict[str, str]:
    """Of each column, the one type that holds all that occurs in it; text where there is none."""
    seen: defaultdict[str, set[type]] = defaultdict(set)
    for row in rows:
        for name, value in row.items():
            seen[name] |= {type(value)} - {type(None)}
    return {name: _type(found) for name, found in seen.items()}


def _type(found: set[type]) -> str:
    if found == {bool}:
        return "bool_"
    if found and found <= {int, float}:
        return "int64" if found == {int} else "float64"
    return "string"


def _typed(row: Row, types: Mapping[str, str]) -> Row:
    return {
        name: json.dumps(value)
        if types[name] == "string" and not isinstance(value, str | None)
        else value
        for name, value in row.items()
    }


@contextmanager
def _opened(out: Path) -> Iterator[TextIO]:
    if out == STDOUT:
        yield sys.stdout
        return
    with explained(out, "written"), out.open("w", newline="") as file:
        yield file
