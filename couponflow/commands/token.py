"""`couponflow token`."""

import sys
from pathlib import Path

from couponflow.commands.support import WRONG_USAGE, fail, print_json, read_settings
from couponflow.kernel.clock import SystemClock
from couponflow.kernel.tokens import Role, TokenKeyBroken, TokensNotMintable, is_subject, mint


def token_command(
    config: Path | None, role: Role, subject: str, hours: float, *, as_json: bool
) -> None:
    if not is_subject(subject):
        fail("--subject must have 1 to 200 printable characters", WRONG_USAGE)
    settings = read_settings(config, quiet=True)
    try:
        token = mint(settings, SystemClock(), role=role, subject=subject, hours=hours)
    except (TokensNotMintable, TokenKeyBroken, OSError) as error:
        fail(str(error))
    if as_json:
        print_json({"token": token, "role": role, "subject": subject, "hours": hours})
    else:
        sys.stdout.write(token + "\n")
