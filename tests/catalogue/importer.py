"""A small catalogue as files, and a helper that imports them."""

from collections.abc import Callable
from pathlib import Path

from couponflow.catalogue.importing import ImportProgress, ImportReport, import_file
from couponflow.catalogue.rejects import RejectedRow, read_rejects
from couponflow.catalogue.store import Kind
from couponflow.kernel.clock import Clock, SystemClock
from couponflow.kernel.database import Database
from tests.catalogue.tables import table

MERCHANTS = """\
slug,name,network,tracking_template,fallback_url,cashback_percent
mitti,Mitti & Co,cj,https://n.example/?s={click_id}&u={url},https://mitti.example/sale,4.5
kitaab,Kitaab Ghar,Admitad,https://n.example/g/?s={click_id}&u={url},,10
"""
OFFERS = """\
offer_uuid,merchant_slug,title,url,starts_at,expires_at,active
0197a3c2-7b1e-7c3d-9a2f-000000000001,mitti,Planters,https://mitti.example/1,,,
0197A3C2-7B1E-7C3D-9A2F-000000000002,kitaab,"Hindi, classics",https://kitaab.example/2,2026-01-01,,no
"""
USERS = """\
user_uuid,email,mobile,name
0197a3c2-7b1e-7c3d-9a2f-00000000000a,diya@example.in,+919800000001,Diya
0197a3c2-7b1e-7c3d-9a2f-00000000000b,,,
"""
TABLES: tuple[Kind, ...] = ("merchants", "offers", "users")
OFFER_1 = "0197a3c2-7b1e-7c3d-9a2f-000000000001"
OFFER_2 = "0197a3c2-7b1e-7c3d-9a2f-000000000002"
USER_A = "0197a3c2-7b1e-7c3d-9a2f-00000000000a"
USER_B = "0197a3c2-7b1e-7c3d-9a2f-00000000000b"


class Importer:
    """Imports text as a file of its own folder."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.file = folder / "in.csv"
        self.rejects = folder / "in.rejects.csv"
        self.steps: list[ImportProgress] = []
        self.progress: Callable[[ImportProgress], None] = self.steps.append
        self.clock: Clock = SystemClock()

    async def __call__(
        self, kind: Kind, content: str | bytes, *, dry_run: bool = False
    ) -> ImportReport:
        """Import `content` as the file."""
        self.file.write_bytes(content.encode() if isinstance(content, str) else content)
        return await import_file(
            kind,
            self.file,
            self.database,
            dry_run=dry_run,
            rejects=self.rejects,
            progress=self.progress,
            clock=self.clock,
        )

    def rejected(self) -> list[RejectedRow]:
        return list(read_rejects(self.rejects)) if self.rejects.exists() else []

    async def tables(self) -> list[list[dict[str, object]]]:
        return [await table(self.database, name) for name in TABLES]


def counts(report: ImportReport) -> tuple[int, int, int, int, int]:
    return (report.read, report.inserted, report.updated, report.unchanged, report.rejected)


def with_rows(content: str, *rows: str) -> str:
    return content.splitlines()[0] + "\n" + "".join(f"{row}\n" for row in rows)
