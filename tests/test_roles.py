import pytest

from couponflow.roles import GROUPS, ROLES, RolesInvalid, parse_roles


@pytest.mark.parametrize(
    ("text", "roles"),
    [
        (
            "all",
            (
                "redirect",
                "webhooks",
                "api",
                "clicks",
                "email",
                "sms",
                "cashback",
                "checkout",
                "inbox",
            ),
        ),
        ("clicks", ("clicks",)),
        ("workers", ("clicks", "email", "sms", "cashback", "checkout", "inbox")),
        ("sms,api", ("api", "sms")),
        (
            "redirect,workers",
            ("redirect", "clicks", "email", "sms", "cashback", "checkout", "inbox"),
        ),
        ("clicks,redirect", ("redirect", "clicks")),
        (" clicks , redirect,, clicks", ("redirect", "clicks")),
    ],
)
def test_names_and_groups_become_roles_in_their_usual_order(
    text: str, roles: tuple[str, ...]
) -> None:
    assert parse_roles(text, in_memory=True) == roles


@pytest.mark.parametrize("text", ["", " ", ",", " , "])
def test_no_role_is_refused(text: str) -> None:
    with pytest.raises(RolesInvalid, match="no role is named"):
        parse_roles(text, in_memory=True)


@pytest.mark.parametrize("text", ["redirects", "all,emails", "REDIRECT"])
def test_an_unknown_role_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(RolesInvalid) as refused:
        parse_roles(text, in_memory=True)
    assert repr(text.rpartition(",")[2]) in str(refused.value)
    known = (
        "Roles: redirect, webhooks, api, clicks, email, sms, cashback, checkout, inbox. "
        "Groups: all, workers."
    )
    assert known in str(refused.value)


def test_a_producer_without_its_consumer_is_refused_and_told_what_to_add() -> None:
    with pytest.raises(RolesInvalid) as refused:
        parse_roles("redirect", in_memory=True)
    assert "'clicks'" in str(refused.value)
    assert "Add clicks (or workers) to --roles, or set REDIS_URL." in str(refused.value)


def test_the_intake_needs_an_inbox_and_the_inbox_all_it_passes_on_to() -> None:
    with pytest.raises(RolesInvalid, match="Add inbox"):
        parse_roles("webhooks", in_memory=True)
    with pytest.raises(RolesInvalid, match=r"Add (cashback|checkout|email|sms) "):
        parse_roles("webhooks,inbox", in_memory=True)
    assert "inbox" in parse_roles("webhooks,workers", in_memory=True)
    assert parse_roles("webhooks", in_memory=False) == ("webhooks",)


def test_a_producer_may_be_alone_where_channels_leave_the_process() -> None:
    assert parse_roles("redirect", in_memory=False) == ("redirect",)


def test_groups_hold_roles_only() -> None:
    for roles in GROUPS.values():
        assert set(roles) <= set(ROLES)
