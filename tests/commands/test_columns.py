from couponflow.commands.columns import aligned


def test_numbers_are_flush_right_and_nothing_is_cut() -> None:
    rows = [("emails", "1,000,000", "x" * 300), ("sms", "0", "")]
    assert aligned(("channel", "waiting", "note"), rows, numbers=("waiting",)) == [
        "channel    waiting  note",
        f"emails   1,000,000  {'x' * 300}",
        "sms              0",
    ]


def test_without_rows_there_are_the_headings() -> None:
    assert aligned(("id", "died"), [], numbers=(), gap=1) == ["id died"]
