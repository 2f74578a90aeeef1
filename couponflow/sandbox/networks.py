"""The four networks' click servers: where a tracked link leads in the demo.

Each reads the click id from the parameter its network really uses, so a template that names the
wrong one is found out here and not in next month's report.
"""

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    "x-robots-tag": "noindex",
}
_templates = Environment(
    loader=PackageLoader("couponflow.sandbox"), autoescape=True, undefined=StrictUndefined
)


@dataclass(frozen=True, slots=True)
class Network:
    """How one network's links look."""

    key: str
    name: str
    route: str
    click_parameter: str
    destination_parameter: str


NETWORKS = (
    Network("admitad", "Admitad", "/admitad/g/{code}/", "subid", "ulp"),
    Network("vcommission", "vCommission", "/vcommission/click", "p1", "url"),
    Network("cuelinks", "CueLinks", "/cuelinks/", "subid", "url"),
    Network("cj", "CJ", "/cj/click-{publisher:int}-{advertisement:int}", "sid", "url"),
)


class Arrivals:
    """How many shoppers came through each network since the sandbox started."""

    def __init__(self) -> None:
        self._arrived = {network.key: 0 for network in NETWORKS}
        self._refused = {network.key: 0 for network in NETWORKS}

    def count(self, network: Network, *, arrived: bool) -> None:
        counts = self._arrived if arrived else self._refused
        counts[network.key] += 1

    def describe(self) -> dict[str, object]:
        return {
            "total": sum(self._arrived.values()),
            "by_network": dict(self._arrived),
            "without_click_id": dict(self._refused),
        }


def networks_app(landed: Callable[[str], None] | None = None) -> Starlette:
    """Make the application that serves all four networks, and `/arrivals` about itself.

    `landed` is told the click id of everybody who arrives.
    """
    arrivals = Arrivals()

    async def show_arrivals(_: Request) -> Response:
        return JSONResponse(arrivals.describe(), headers={"cache-control": "no-store"})

    routes = [_network_route(network, arrivals, landed) for network in NETWORKS]
    return Starlette(routes=[*routes, Route("/arrivals", show_arrivals)])


def _network_route(
    network: Network, arrivals: Arrivals, landed: Callable[[str], None] | None
) -> Route:
    async def click(request: Request) -> Response:
        click_id = request.query_params.get(network.click_parameter, "").strip()
        arrived = _is_click_id(click_id)
        if request.method != "HEAD":
            arrivals.count(network, arrived=arrived)
            if arrived and landed is not None:
                landed(click_id)
        return _arrival(network, request, click_id) if arrived else _refusal(network, click_id)

    return Route(network.route, click, name=network.key)


def _is_click_id(text: str) -> bool:
    """Whether it can be a sub-id; a placeholder that nobody filled in cannot."""
    return text != "" and not set(text) & set("{}[]")


def _arrival(network: Network, request: Request, click_id: str) -> Response:
    destination = request.query_params.get(network.destination_parameter, "")
    page = _templates.get_template("arrival.html").render(
        network=network.name,
        merchant=_host(destination) or "the merchant",
        click_id=click_id,
        click_parameter=network.click_parameter,
        destination=destination or "the merchant's front page, since the link names no other",
    )
    return HTMLResponse(page, headers=_HEADERS)


def _refusal(network: Network, click_id: str) -> Response:
    page = _templates.get_template("no_click_id.html").render(
        network=network.name, click_parameter=network.click_parameter, click_id=click_id
    )
    return HTMLResponse(page, status_code=400, headers=_HEADERS)


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
