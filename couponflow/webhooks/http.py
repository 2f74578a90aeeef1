"""The routes of the intake: a path for each source, `/health` and `/ready`.

    POST /razorpay              the source
    POST /msg91/TOKEN           the source, with the secret last part of its URL
    POST /generic/NAME          a source that configuration alone defines
    GET  /api/webhook           the health check of the source at that path

How a request's body is read differs from server to server, and is in `adapters.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from couponflow.kernel.answers import Answer, json_answer, problem_answer
from couponflow.kernel.client_address import ClientAddress, Headers
from couponflow.kernel.clock import Clock
from couponflow.kernel.health import HealthBoard
from couponflow.webhooks.answers import Trouble, trouble_answer, verdict_answer
from couponflow.webhooks.contract import Delivery, Refused
from couponflow.webhooks.intake import Gate, Intake, Verdict
from couponflow.webhooks.metrics import UNKNOWN_SOURCE, WebhookMetrics

HEALTH_PATH = "/api/webhook"
"""A source whose address also answers GET, to whoever asks whether it is up."""
PATH_PARTS_MAX = 2
"""Of a source's own path, as `generic/NAME`."""
_CORS_HEADERS = [
    ("access-control-allow-methods", "GET, POST"),
    ("access-control-allow-headers", "content-type, upstash-signature, upstash-message-id"),
]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may take."""

    body_bytes: int
    body_seconds: float


class Request(msgspec.Struct, frozen=True, gc=False):
    """A request to a source, before its body is read."""

    method: str
    token: str
    """What follows the source's own path, percent-decoded."""
    query: str
    headers: Headers
    peer: str
    """`ip:port`, or `[ip]:port`."""


class WebhookRoutes:
    """Finds the source, builds the delivery, and turns what became of it into an answer."""

    def __init__(
        self,
        gates: Mapping[str, Gate],
        intake: Intake,
        *,
        limits: Limits,
        cors: Mapping[str, Sequence[str]],
        client_address: ClientAddress,
        metrics: WebhookMetrics,
        health: HealthBoard,
        required: Sequence[str],
        clock: Clock,
    ) -> None:
        """`gates` by path, without its slash; `cors` by path, the origins that may call it."""
        self._gates = {f"/{path}": gate for path, gate in gates.items()}
        self._intake = intake
        self.limits = limits
        self._cors = {f"/{path}": frozenset(origins) for path, origins in cors.items() if origins}
        self._address_of = client_address.of
        self._metrics = metrics
        self._health = health
        self._required = required
        self._clock = clock

    def find(self, path: str) -> tuple[Gate, str] | None:
        """The source at a path, and what follows the source's own path."""
        gate = self._gates.get(path)
        if gate is not None:
            return gate, ""
        # A secret may hold slashes of its own, so it begins after the source's path.
        end = path.find("/", 1)
        for _ in range(PATH_PARTS_MAX):
            if end < 0:
                break
            gate = self._gates.get(path[:end])
            if gate is not None:
                return gate, path[end + 1 :]
            end = path.find("/", end + 1)
        return None

    def refuses_address(self, gate: Gate, request: Request) -> Refused | None:
        """Whether the source's list of addresses shuts the sender out; changes nothing."""
        if gate.is_open:
            return None
        return gate.refuses_address(self._address_of(request.peer, request.headers))

    def turn_away(self, gate: Gate, request: Request) -> Answer | None:
        """The answer to whom the source's list of addresses shuts out.

        Asked before a place is taken and the body read: else anybody could take all the places.
        """
        refused = self.refuses_address(gate, request)
        if refused is None:
            return None
        self._intake.turn_away(gate, self._delivery(gate, request, b""), refused)
        self._metrics.count(gate.source.name, refused.reason)
        return verdict_answer(refused.reason, "")

    def take(
        self, gate: Gate, request: Request, body: bytes, answer: Callable[[Answer], None]
    ) -> None:
        """Judge a whole delivery; `answer` is called once, now or within `store_seconds`."""
        began = self._clock.monotonic()
        name = gate.source.name
        metrics = self._metrics

        def judged(verdict: Verdict, webhook_id: str) -> None:
            metrics.count(name, verdict)
            if verdict == "accepted":
                metrics.observe(name, self._clock.monotonic() - began)
            answer(verdict_answer(verdict, webhook_id))

        self._intake.take(gate, self._delivery(gate, request, body), judged)

    def _delivery(self, gate: Gate, request: Request, body: bytes) -> Delivery:
        headers = request.headers
        kept: dict[str, str] = {}
        for name in gate.source.header_names:
            values = headers.get_all(name)
            if values:
                kept[name] = values[0] if len(values) == 1 else ",".join(values)
        return Delivery(
            method=request.method,
            token=request.token,
            query=request.query,
            headers=kept,
            body=body,
            address=self._address_of(request.peer, headers),
            received_at=self._clock.now(),
        )

    def trouble(self, gate: Gate, trouble: Trouble) -> Answer:
        """What a request is answered that does not get as far as a delivery."""
        self._metrics.count(gate.source.name, trouble)
        return trouble_answer(trouble)

    def other(self, method: str, path: str, headers: Headers) -> Answer:
        """What is no delivery: health, preflights, and everything that is wrong."""
        if path == "/health" and method in ("GET", "HEAD"):
            return json_answer(200, {"status": "alive"})
        if path == "/ready" and method in ("GET", "HEAD"):
            health = self._health.snapshot(self._required)
            return json_answer(503 if health.status == "not_ready" else 200, health)
        found = self.find(path)
        if path == HEALTH_PATH and method in ("GET", "HEAD"):
            return self.with_cors(path, headers, json_answer(200, {"status": "alive"}))
        if found is None:
            self._metrics.count(UNKNOWN_SOURCE, "unknown")
            return problem_answer(
                404,
                "unknown-source",
                "Not Found",
                "no source of webhooks is here; one without a secret is off",
            )
        if method == "OPTIONS" and self._origin(path, headers):
            return self.with_cors(path, headers, Answer(204, _CORS_HEADERS))
        allowed = sorted(found[0].source.methods | ({"GET"} if path == HEALTH_PATH else set()))
        return problem_answer(
            405,
            "method-not-allowed",
            "Method Not Allowed",
            f"this source sends {' or '.join(sorted(found[0].source.methods))}",
            ("allow", ", ".join(allowed)),
        )

    def with_cors(self, path: str, headers: Headers, answer: Answer) -> Answer:
        """Let a page of an allowed origin read the answer; no other page may."""
        origin = self._origin(path, headers) if path in self._cors else ""
        if not origin:
            return answer
        added = [("access-control-allow-origin", origin), ("vary", "origin")]
        return Answer(answer.status, [*answer.headers, *added], answer.body)

    def _origin(self, path: str, headers: Headers) -> str:
        origin = headers.get("origin") or ""
        return origin if origin in self._cors.get(path, ()) else ""
