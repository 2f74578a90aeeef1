"""Options that commands of the command line share."""

import math
from pathlib import Path

import click

_CONFIG_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _use_config(context: click.Context, parameter: click.Parameter, config: Path | None) -> None:
    """Make the file the context's object, which the contexts below it inherit."""
    if config is not None:
        context.obj = config


config_option = click.option(
    "--config",
    type=_CONFIG_FILE,
    expose_value=False,
    callback=_use_config,
    help="Settings file; ./couponflow.toml if it is there. The environment wins over it.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
limit_option = click.option(
    "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True
)
ids_argument = click.argument("ids", metavar="[ID]...", nargs=-1)
yes_option = click.option("--yes", is_flag=True, help="Do not ask; needed where nobody can answer.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Say how many match; change nothing.")


class FiniteFloat(click.FloatRange):
    """A number in a range that `nan` is not in either."""

    def convert(
        self, value: float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number
