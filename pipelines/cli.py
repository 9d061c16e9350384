"""The command `selfmask`. A user's mistake is one line on standard error and exit code 2, never a traceback."""

import sys

import typer

from cache.errors import UserError
from pipelines.commands import caches, data, stages

app = typer.Typer(
    name="selfmask",
    help="Multimodal learning with missing modalities: cached tokens, cross-modal self-masking, honest evaluation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data.simulate, name="simulate")
app.add_typer(data.prepare, name="prepare")
app.command()(data.check)
for command in (stages.fit, stages.extract, stages.train, stages.finetune):
    app.command()(command)
for command in (stages.evaluate, stages.report, stages.predict):
    app.command()(command)
app.add_typer(caches.app, name="cache")


def main() -> None:
    """Run the command line."""
    try:
        app()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("interrupted: run the same command again to go on.", err=True)
        sys.exit(130)
