"""`attnbench methods`: what there is to measure."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnbench.cli.options import AsJson
from attnbench.cli.tabular import Grid, show
from attnbench.cli.tune import tune
from attnbench.cli.tune_products import tune_products

if TYPE_CHECKING:
    from attnbench.methods.base import Method

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="""List, show and tune methods.

    Examples: `attnbench methods list`, `attnbench methods show sink_window,window=1024`,
    `attnbench methods tune flash_decode --against exact`.
    """,
)
app.command("tune")(tune)
app.command("tune-products")(tune_products)


@app.command("list")
def list_methods(as_json: AsJson = False) -> None:
    """List every method that is built in or installed.

    Example: `attnbench methods list --json`.
    """
    from attnbench.methods import registry

    found = [facts(registry.parse(name)) for name in registry.names()]
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    columns = ("method", "family", "parameters", "what it does")
    rows = [(f["method"], f["family"], parameters_text(f), f["summary"]) for f in found]
    show(Grid(columns=columns, rows=rows))


@app.command("show")
def show_method(
    method: Annotated[str, typer.Argument(help="name,key=value or file.py:Class.")],
    as_json: AsJson = False,
) -> None:
    """Show one method: what it is, its parameters, where it comes from.

    Example: `attnbench methods show sink_window,window=1024`.
    """
    from attnbench.methods import registry

    found = facts(registry.parse(method))
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    typer.echo(f"{found['label']} ({found['family']})\n\n{found['description']}\n")
    for name, value in (
        ("parameters", parameters_text(found) or "none"),
        ("implementations", ", ".join(found["implementations"])),
        ("source", found["source"]),
        ("code", f"{found['file']} (sha256 {found['sha256']})"),
    ):
        typer.echo(f"{name:<16}{value}")


def facts(method: Method) -> dict[str, Any]:
    """What there is to say of a method."""
    from dataclasses import fields

    from attnbench.methods import registry

    description = inspect.cleandoc(type(method).__doc__ or "")
    return {
        "method": method.name,
        "label": method.label,
        "family": method.family.value,
        "parameters": {field.name: getattr(method, field.name) for field in fields(method)},
        "implementations": list(method.implementations),
        "summary": " ".join(description.split("\n\n")[0].split()),
        "description": description,
        "source": method.source,
        "file": inspect.getfile(type(method)),
        "sha256": registry.source_sha256(method),
    }


def parameters_text(found: dict[str, Any]) -> str:
    """The parameters as they are written on the command line; an open one shows its choices."""
    open_choice = "|".join(found["implementations"])
    return ",".join(f"{k}={v if v != '' else open_choice}" for k, v in found["parameters"].items())
