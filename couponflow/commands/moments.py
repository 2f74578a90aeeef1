"""Moments that the command line is given."""

from datetime import datetime

import click

from couponflow.kernel.clock import Clock
from couponflow.kernel.moments import parse_moment


def moment_given(option: str, text: str | None, clock: Clock) -> datetime | None:
    """The moment that an option says, if it was given; raises click's `BadParameter`."""
    try:
        return None if text is None else parse_moment(text, clock)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from error
