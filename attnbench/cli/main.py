"""The `attnbench` command: finds the sub-command, runs it, and turns errors into text and codes.

A sub-command is a line in COMMANDS; its module is imported when it is invoked, not before, so that
`attnbench --help` needs neither torch nor numpy.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from attnbench import __version__
from attnbench.errors import AttnbenchError, Exit


class Entry(NamedTuple):
    """Where a sub-command lives (`module:attribute`, a function or a typer app), and its help."""

    target: str
    help: str


COMMANDS = {
    "decode": Entry("attnbench.cli.decode:decode", "Measure decode latency and KV memory; decide."),
    "quality": Entry("attnbench.cli.quality:quality", "Judge what methods do to a trained model."),
    "run": Entry("attnbench.cli.run:run", "Run a registered protocol to its verdict."),
    "protocol": Entry(
        "attnbench.cli.protocol:app", "Promise what will be measured and what decides."
    ),
    "memory": Entry(
        "attnbench.cli.memory:memory", "Measure KV memory; find the largest context that fits."
    ),
    "parity": Entry("attnbench.cli.parity:parity", "Check kernels against their references."),
    "doctor": Entry("attnbench.cli.doctor:doctor", "Say what would spoil a measurement here."),
    "calibrate": Entry(
        "attnbench.cli.calibrate:calibrate", "Learn what this machine can tell apart."
    ),
    "methods": Entry("attnbench.cli.methods:app", "List, show and tune methods."),
    "report": Entry(
        "attnbench.cli.report:report", "Make one page of a ledger, its figures and tables."
    ),
    "claims": Entry("attnbench.cli.claims:app", "Import and adjudicate what sources claim."),
    "ledger": Entry("attnbench.cli.ledger:app", "Read, check and retract what was recorded."),
}


class Deferred(TyperCommand):
    """A sub-command that is known by name and help, and imported when it is invoked."""

    def __init__(self, name: str, entry: Entry) -> None:
        super().__init__(name=name, callback=None, help=entry.help, add_help_option=False)
        self._entry = entry

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        return _load(self.name or "", self._entry).make_context(info_name, args, *rest, **extra)


class LazyGroup(TyperGroup):
    """The top level: its sub-commands are those of COMMANDS, in that order."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Deferred | None:  # noqa: ARG002
        entry = COMMANDS.get(cmd_name)
        return Deferred(cmd_name, entry) if entry else None

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(Exit.INTERRUPTED) from None


app = typer.Typer(
    cls=LazyGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"attnbench {__version__}")
        raise typer.Exit(Exit.DONE)


@app.callback()
def attnbench(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
) -> None:
    """Is an attention or KV-cache method really faster or smaller at decode time?

    Examples:

    attnbench doctor

    attnbench decode

    attnbench decode --plan --model preset:llama-3.2-1b --ctx 32768 --batch 4

    attnbench quality int8_kv

    attnbench parity my_method.py:MyMethod

    attnbench ledger diff
    """


def main() -> NoReturn:
    """Run the command line and leave with its exit code; SIGTERM interrupts it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except AttnbenchError as error:
        _tell(error, as_json="--json" in sys.argv[1:])
        sys.exit(error.exit_code)
    sys.exit(Exit.DONE)


def command() -> NoReturn:
    """`main` in a process of its own, which ends quickly."""
    try:
        main()
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        from attnbench.measure.lifeline import leave

        leave(end.code)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _tell(error: AttnbenchError, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"error": error.message, "hint": error.hint}, ensure_ascii=False))
        return
    typer.echo(f"error: {error.message}", err=True)
    if error.hint:
        typer.echo(f"  {error.hint}", err=True)


def _load(name: str, entry: Entry) -> Any:
    """Import a sub-command and return it as typer runs it."""
    module, _, attribute = entry.target.partition(":")
    try:
        command: typer.Typer | Callable[..., Any] = getattr(import_module(module), attribute)
    except ModuleNotFoundError as missing:
        if missing.name != module:
            raise
        raise AttnbenchError(
            f"this attnbench ({__version__}) has no `{name}`", hint="Install a later version."
        ) from None
    loaded = typer.main.get_command(
        command if isinstance(command, typer.Typer) else _alone(command)
    )
    loaded.name = name
    return loaded


def _alone(function: Callable[..., Any]) -> typer.Typer:
    single = typer.Typer(add_completion=False)
    single.command()(function)
    return single
