"""What a click is thought to be: a person's, a crawler's, a prefetch or a double-click."""

from crawleruseragents import is_crawler

from couponflow.kernel.client_address import Headers
from couponflow.messages import Verdict
from couponflow.redirect.recent import Recent

MAX_USER_AGENTS = 20_000
MAX_RECENT_CLICKS = 100_000
"""Two generations of them take about 40 MB; a flood beyond shortens the window."""


class VerdictJudge:
    """Judges clicks; the first of prefetch, bot, duplicate and human that fits.

    Only human clicks are remembered for duplicates, and the window is not prolonged by them: a
    prefetch does not make the real click that follows it a duplicate.
    """

    def __init__(self, duplicate_window_seconds: float) -> None:
        self._window_seconds = duplicate_window_seconds
        self._clicks: Recent[str, float] = Recent(
            max(duplicate_window_seconds, 1), MAX_RECENT_CLICKS
        )
        self._crawlers: dict[str, bool] = {}

    def judge(
        self, method: str, headers: Headers, user_agent: str, visit: str, now: float
    ) -> Verdict:
        """`visit` names the user and the offer together, such as the path; `now` is monotonic."""
        if method == "HEAD" or _is_prefetch(headers):
            return "prefetch"
        crawler = self._crawlers.get(user_agent)
        if crawler is None:
            crawler = self._look_up(user_agent)
        if crawler:
            return "bot"
        last = self._clicks.get(visit)
        if last is not None and now - last < self._window_seconds:
            return "duplicate"
        self._clicks.put(visit, now, now)
        return "human"

    def _look_up(self, user_agent: str) -> bool:
        """A thousand patterns take a fraction of a millisecond, so each user agent is asked once.

        No browser leaves the header out, so a click without it is a program's.
        """
        crawler = not user_agent or is_crawler(user_agent)
        if len(self._crawlers) >= MAX_USER_AGENTS:
            self._crawlers.clear()
        self._crawlers[user_agent] = crawler
        return crawler


def _is_prefetch(headers: Headers) -> bool:
    purpose = headers.get("sec-purpose") or headers.get("purpose")
    return purpose is not None and "pre" in purpose.lower()
