"""The command `selfmask`.

A user's mistake is one line on standard error and exit code 2, an interruption one line and 130, never a traceback.
Commands import what they need when they run, so that `--help` and DVC's many processes don't pay for torch.
"""

from typing import Any

import typer
from typer.core import TyperGroup

from cache.errors import UserError
from pipelines.commands import benchmarks, cache_changes, caches, data, stage_one, stage_two


class OneLineErrors(TyperGroup):
    """Turns the two expected ways to end early into a line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command.

        Raises:
            typer.Exit: 2 after a user's mistake, 130 after an interruption.
        """
        try:
            return super().invoke(ctx)
        except UserError as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:  # here, because Typer's versions differ in what they make of it
            typer.echo("interrupted: run the same command again to go on.", err=True)
            raise typer.Exit(130) from error


app = typer.Typer(
    name="selfmask",
    cls=OneLineErrors,
    help="Multimodal learning with missing modalities: cached tokens, cross-modal self-masking, honest evaluation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data.simulate, name="simulate")
app.add_typer(data.prepare, name="prepare")
app.command()(data.check)
app.command()(stage_one.fit)
app.command()(stage_one.extract)
app.command()(stage_two.train)
app.command()(stage_two.finetune)
app.command()(stage_two.evaluate)
app.command()(stage_two.report)
app.command()(benchmarks.benchmark)
app.command()(stage_two.predict)
caches.app.command()(cache_changes.merge)
caches.app.command()(cache_changes.compact)
caches.app.command("import")(cache_changes.import_)
caches.app.command()(cache_changes.export)
caches.app.command()(cache_changes.upload)
app.add_typer(caches.app, name="cache")


def main() -> None:
    """Run the command line."""
    app()
