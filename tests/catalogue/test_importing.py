"""Imports: what is taken, what is rejected and why."""

import csv
import uuid

import pytest

from couponflow.catalogue.rejects import RejectedRow
from couponflow.catalogue.store import Kind
from tests.catalogue.importer import (
    MERCHANTS,
    OFFER_1,
    OFFER_2,
    OFFERS,
    USER_A,
    USER_B,
    USERS,
    Importer,
    counts,
    with_rows,
)
from tests.catalogue.tables import table


async def test_a_first_import_inserts_every_row(filled: Importer) -> None:
    merchants, offers, users = await filled.tables()
    ids = {str(row["slug"]): row["id"] for row in merchants}
    assert sorted((row["slug"], row["network"], row["fallback_url"]) for row in merchants) == [
        ("kitaab", "admitad", None),
        ("mitti", "cj", "https://mitti.example/sale"),
    ]
    assert [uuid.UUID(str(merchant_id)).version for merchant_id in ids.values()] == [7, 7]
    assert [
        (str(row["id"]), row["merchant_id"], row["title"], row["active"]) for row in offers
    ] == [
        (OFFER_1, ids["mitti"], "Planters", True),
        (OFFER_2, ids["kitaab"], "Hindi, classics", False),
    ]
    assert [(str(row["id"]), row["email"], row["name"]) for row in users] == [
        (USER_A, "diya@example.in", "Diya"),
        (USER_B, None, None),
    ]


@pytest.mark.parametrize(
    ("kind", "content"), [("merchants", MERCHANTS), ("offers", OFFERS), ("users", USERS)]
)
async def test_importing_the_same_file_again_leaves_every_row_untouched(
    filled: Importer, kind: Kind, content: str
) -> None:
    before = await filled.tables()
    report = await filled(kind, content)
    assert counts(report) == (2, 0, 0, 2, 0)
    # The rows carry the transaction that wrote them, so even an equal rewrite would show.
    assert await filled.tables() == before


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize(
    ("kind", "content", "change"),
    [
        ("merchants", MERCHANTS, (",4.5", ",5")),
        ("merchants", MERCHANTS, (",https://mitti.example/sale,", ",,")),
        ("offers", OFFERS, (",mitti,", ",kitaab,")),
        ("offers", OFFERS, (",2026-01-01,,", ",2026-01-01,2027-01-01,")),
        ("offers", OFFERS, (",no", ",yes")),
        ("users", USERS, ("diya@", "DIYA@")),
        ("users", USERS, ("+919800000001", "")),
    ],
)
async def test_a_changed_row_is_updated_and_a_new_one_inserted(
    filled: Importer, kind: Kind, content: str, change: tuple[str, str], dry_run: bool
) -> None:
    new_rows = {
        "merchants": "neu,Neu,cj,https://n.example/{click_id},,1",
        "offers": "0197a3c2-7b1e-7c3d-9a2f-000000000003,mitti,New,https://mitti.example/3,,,",
        "users": "0197a3c2-7b1e-7c3d-9a2f-00000000000c,neu@example.in,,",
    }
    before = await filled.tables()
    assert change[0] in content
    report = await filled(kind, content.replace(*change) + new_rows[kind], dry_run=dry_run)
    assert counts(report) == (3, 1, 1, 1, 0)
    assert (await filled.tables() == before) is dry_run


async def test_a_merchant_keeps_its_id(filled: Importer) -> None:
    before = {row["slug"]: row["id"] for row in await table(filled.database, "merchants")}
    await filled("merchants", MERCHANTS.replace("Mitti & Co", "Mitti"))
    after = {row["slug"]: row["id"] for row in await table(filled.database, "merchants")}
    assert after == before


async def test_bad_rows_are_set_aside_and_good_ones_taken(filled: Importer) -> None:
    content = with_rows(
        OFFERS,
        f"{OFFER_1},mitti,Pots,https://mitti.example/1,,,",
        "nonsense,mittl,,ftp://x,2026-02-02,2026-01-01,perhaps",
    )
    report = await filled("offers", content)
    assert counts(report) == (2, 0, 1, 0, 1)
    assert report.rejects == filled.rejects
    assert filled.rejected() == [
        RejectedRow(
            3,
            "offer_uuid 'nonsense' is not a UUID; title is empty; "
            "url does not start with http:// or https:// (in lower case): 'ftp://x'; "
            "active 'perhaps' is not true, false, yes, no, 1 or 0; "
            "starts_at is not before expires_at; "
            "merchant_slug 'mittl' is not a known merchant: did you mean mitti?",
        )
    ]
    titles = {str(row["id"]): row["title"] for row in await table(filled.database, "offers")}
    assert titles == {OFFER_1: "Pots", OFFER_2: "Hindi, classics"}


async def test_an_offer_of_a_merchant_nobody_knows_is_rejected(filled: Importer) -> None:
    before = await filled.tables()
    content = with_rows(OFFERS, f"{OFFER_1},zzz,T,https://z.example/,,,")
    assert counts(await filled("offers", content)) == (1, 0, 0, 0, 1)
    assert filled.rejected() == [
        RejectedRow(2, "merchant_slug 'zzz' is not a known merchant: import the merchant first")
    ]
    assert await filled.tables() == before


@pytest.mark.parametrize(
    ("kind", "rows", "reason"),
    [
        (
            "merchants",
            (
                "neu,A,cj,https://n.example/{click_id},,1",
                "neu,B,cj,https://n.example/{click_id},,1",
            ),
            "same slug as line 2",
        ),
        (
            "offers",
            (
                "0197a3c2-7b1e-7c3d-9a2f-000000000009,mitti,A,https://m.example/,,,",
                "{0197A3C2-7B1E-7C3D-9A2F-000000000009},mitti,B,https://m.example/,,,",
            ),
            "same offer_uuid as line 2",
        ),
        (
            "users",
            (
                "0197a3c2-7b1e-7c3d-9a2f-000000000009,a@example.in,,A",
                "0197a3c27b1e7c3d9a2f000000000009,A@example.in,,B",
            ),
            "same user_uuid as line 2; same email as line 2",
        ),
    ],
)
async def test_of_two_rows_with_one_key_the_first_is_taken(
    filled: Importer, kind: Kind, rows: tuple[str, str], reason: str
) -> None:
    content = {"merchants": MERCHANTS, "offers": OFFERS, "users": USERS}[kind]
    report = await filled(kind, with_rows(content, *rows))
    assert counts(report) == (2, 1, 0, 0, 1)
    assert filled.rejected() == [RejectedRow(3, reason)]


async def test_a_rejected_row_does_not_keep_a_good_one_with_its_key_out(filled: Importer) -> None:
    content = with_rows(
        OFFERS,
        f"{OFFER_1},mitti,,https://mitti.example/1,,,",
        f"{OFFER_1},mitti,Pots,https://mitti.example/1,,,",
    )
    assert counts(await filled("offers", content)) == (2, 0, 1, 0, 1)
    assert filled.rejected() == [RejectedRow(2, "title is empty")]


async def test_an_email_of_another_user_is_rejected_whatever_its_case(filled: Importer) -> None:
    before = await filled.tables()
    content = with_rows(USERS, f"{USER_B},Diya@Example.in,,", f"{USER_A},diya@example.in,bad,Diya")
    assert counts(await filled("users", content)) == (2, 0, 0, 0, 2)
    assert filled.rejected() == [
        RejectedRow(2, f"email belongs to another user, {USER_A}"),
        RejectedRow(3, "mobile 'bad' is not a telephone number: 7 to 15 digits, '+' before them"),
    ]
    assert await filled.tables() == before


async def test_an_email_of_bytes_that_are_not_utf8_is_rejected(filled: Importer) -> None:
    content = with_rows(USERS, f"{USER_B},?@example.in,,").encode().replace(b"?", b"\xff")
    assert counts(await filled("users", content)) == (1, 0, 0, 0, 1)
    assert filled.rejected() == [
        RejectedRow(
            2,
            "line holds the byte 0xff, which is not UTF-8: save the file as UTF-8; "
            r"email '\udcff@example.in' is not an e-mail address",
        )
    ]


async def test_lines_are_counted_as_in_the_file(filled: Importer) -> None:
    content = with_rows(
        OFFERS,
        f'{OFFER_1},mitti,"Pots\n\nand pans",https://mitti.example/1,,,',
        "",
        f'{OFFER_2},mitti,"Unclosed,https://mitti.example/1,,,',
        f"{OFFER_2},mitti,Pans",
        f"{OFFER_2},mitti,Pans,https://mitti.example/1,,,,more",
        f"{OFFER_2},mitti,Pa\0ns,https://mitti.example/1,,,",
        f"{OFFER_2},mitti,Pans,https://mitti.example/2,,,",
    )
    assert counts(await filled("offers", content)) == (6, 0, 2, 0, 4)
    reasons = [(row.line, row.reason) for row in filled.rejected()]
    assert [line for line, _ in reasons] == [6, 7, 8, 9]
    assert reasons[0][1].startswith("line has a quote that does not close")
    assert [reason for _, reason in reasons[1:3]] == [
        "line has 3 columns, the header 7",
        "line has 8 columns, the header 7",
    ]
    assert reasons[3][1] == (r"line holds a NUL byte; title holds the control character '\x00'")


async def test_the_rejects_file_holds_the_rows_as_they_were(filled: Importer) -> None:
    header = OFFERS.splitlines()[0].encode()
    content = (
        header
        + b'\nx,mitti,"a ""b""\nc",u,,,\n1,2\n1,2,3,4,5,6,7,8,9\n\xff,mitti,T\xe9,u,,,\n"open,x\n'
    )
    assert counts(await filled("offers", content)) == (5, 0, 0, 0, 5)
    stream = filled.rejects.read_bytes()
    assert stream.startswith(header + b",line,reason\n" + b'x,mitti,"a ""b""\nc",u,,,,2,')
    assert b"\n\xff,mitti,T\xe9,u,,,,6," in stream
    with filled.rejects.open(errors="surrogateescape", newline="") as text:
        rows = [row[:8] for row in csv.reader(text)][1:]
    assert rows == [
        ["x", "mitti", 'a "b"\nc', "u", "", "", "", "2"],
        ["1", "2", "", "", "", "", "", "4"],
        ["1", "2", "3", "4", "5", "6", "7,8,9", "5"],
        ["\udcff", "mitti", "T\udce9", "u", "", "", "", "6"],
        ['"open,x', "", "", "", "", "", "", "7"],
    ]


async def test_a_mended_rejects_file_can_be_imported(filled: Importer) -> None:
    await filled("offers", with_rows(OFFERS, f"{OFFER_1},mitti,,https://mitti.example/1,,,"))
    mended = filled.rejects.read_text().replace("mitti,,", "mitti,Mended,")
    assert counts(await filled("offers", mended)) == (1, 0, 1, 0, 0)
    # What an earlier import rejected must not look as if this one had.
    assert not filled.rejects.exists()


async def test_a_mended_rejects_file_that_is_still_bad_has_its_own_reasons(
    filled: Importer,
) -> None:
    await filled("offers", with_rows(OFFERS, f"{OFFER_1},mitti,,https://mitti.example/1,,,"))
    await filled("offers", filled.rejects.read_text().replace(",https:", ",T,https:"))
    assert filled.rejects.read_text().splitlines()[0] == f"{OFFERS.splitlines()[0]},line,reason"
    assert [row.reason for row in filled.rejected()] == ["line has 10 columns, the header 9"]


async def test_a_byte_order_mark_and_another_column_order_are_fine(filled: Importer) -> None:
    content = f"\ufeffname,user_uuid,mobile,email\r\nDiya P,{USER_A},,diya@example.in\r\n"
    assert counts(await filled("users", content)) == (1, 0, 1, 0, 0)
    assert (await table(filled.database, "users"))[0]["name"] == "Diya P"


async def test_a_dry_run_reports_everything_and_changes_nothing(filled: Importer) -> None:
    before = await filled.tables()
    content = OFFERS.replace("Planters", "Pots") + "bad,mitti,T,https://mitti.example/,,,\n"
    report = await filled("offers", content, dry_run=True)
    assert (counts(report), report.dry_run) == ((3, 0, 1, 1, 1), True)
    assert filled.rejected() == [RejectedRow(4, "offer_uuid 'bad' is not a UUID")]
    assert await filled.tables() == before
