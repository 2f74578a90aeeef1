import pytest

from couponflow.messages import Verdict
from couponflow.redirect import verdict
from couponflow.redirect.verdict import VerdictJudge
from tests.samples import BROWSER, FakeHeaders

GOOGLEBOT = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
NOTHING = FakeHeaders()


def judged(
    judge: VerdictJudge,
    now: float = 0.0,
    *,
    method: str = "GET",
    headers: FakeHeaders = NOTHING,
    user_agent: str = BROWSER,
    visit: str = "user+offer",
) -> Verdict:
    return judge.judge(method, headers, user_agent, visit, now)


@pytest.mark.parametrize("user_agent", [GOOGLEBOT, "curl/8.5.0", "python-requests/2.32", ""])
def test_crawlers_and_programs_are_bots(user_agent: str) -> None:
    judge = VerdictJudge(60)
    assert [judged(judge, user_agent=user_agent) for _ in range(2)] == ["bot", "bot"]


@pytest.mark.parametrize(
    "header",
    [
        ("sec-purpose", "prefetch"),
        ("sec-purpose", "prefetch;prerender"),
        ("purpose", "prefetch"),
        ("purpose", "Preview"),
    ],
)
def test_a_browser_that_looks_ahead_is_a_prefetch(header: tuple[str, str]) -> None:
    assert judged(VerdictJudge(60), headers=FakeHeaders(header)) == "prefetch"


def test_a_head_request_is_a_prefetch_even_of_a_bot() -> None:
    assert judged(VerdictJudge(60), method="HEAD", user_agent=GOOGLEBOT) == "prefetch"


def test_the_same_visit_within_the_window_is_a_duplicate_of_the_first() -> None:
    judge = VerdictJudge(60)
    moments = (0.0, 1.0, 59.9, 60.0, 61.0)
    expected = ["human", "duplicate", "duplicate", "human", "duplicate"]
    assert [judged(judge, now) for now in moments] == expected


def test_other_visits_are_no_duplicates() -> None:
    judge = VerdictJudge(60)
    assert [judged(judge, visit=f"visit {n}") for n in range(3)] == ["human"] * 3


def test_a_prefetch_or_a_bot_does_not_make_the_click_after_it_a_duplicate() -> None:
    judge = VerdictJudge(60)
    assert judged(judge, headers=FakeHeaders(("purpose", "prefetch"))) == "prefetch"
    assert judged(judge, user_agent=GOOGLEBOT) == "bot"
    assert judged(judge) == "human"


def test_without_a_window_nothing_is_a_duplicate() -> None:
    judge = VerdictJudge(0)
    assert [judged(judge) for _ in range(3)] == ["human"] * 3


def test_a_user_agent_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(verdict, "is_crawler", lambda agent: bool(asked.append(agent)))
    monkeypatch.setattr(verdict, "MAX_USER_AGENTS", 3)
    judge = VerdictJudge(60)
    for agent in ("a", "a", "b", "c", "a", "d", "a"):
        judged(judge, user_agent=agent)
    assert asked == ["a", "b", "c", "d", "a"]
