"""Where the files that are not Python are: in a checkout, and in the installed wheel."""

import importlib.resources
from pathlib import Path


class ResourceMissing(Exception):
    """A file that couponflow ships with is not there: the installation is incomplete.

    Reinstall the wheel, or run from a complete checkout.
    """


def resource_path(*parts: str) -> Path:
    """Return the path of a shipped file or folder, named as in a checkout.

    `resource_path("sql", "migrations")` is `sql/migrations` beside the package in a checkout and
    `couponflow/_sql/migrations` in the wheel. The wheel's own copy comes first, so that a folder
    which happens to be called `sql` in site-packages is never taken for ours.
    """
    top, *rest = parts
    package = Path(str(importlib.resources.files("couponflow")))
    candidates = (package / f"_{top}", package.parent / top)
    for folder in candidates:
        path = folder.joinpath(*rest)
        if path.exists():
            return path
    tried = " nor ".join(str(folder.joinpath(*rest)) for folder in candidates)
    raise ResourceMissing(
        f"couponflow's file {'/'.join(parts)} is missing: there is neither {tried}; "
        "reinstall couponflow or complete the checkout"
    )
