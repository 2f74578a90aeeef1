"""Who gives a command, as audit logs name them."""

import getpass
import os


def operator() -> str:
    """`cli:` and the account; its number where the system has no name for it."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):
        return f"cli:{os.getuid()}"
