"""The simulated networks take a click as the real ones do, and say so in a page."""

from collections.abc import AsyncIterator

import httpx2
import pytest

from couponflow.sandbox.networks import networks_app

CLICK = "0199f3c2-7a44-7d15-9f3e-6b1f0c2d4e5a"
DESTINATION = "https://www.kitaabghar.example/hindi?q=3&offer=3for499"


@pytest.fixture
async def networks() -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(networks_app())
    async with httpx2.AsyncClient(transport=transport, base_url="http://networks") as client:
        yield client


LINKS = [
    ("admitad", "Admitad", "/admitad/g/8k2vastrika41/", "subid", "ulp"),
    ("vcommission", "vCommission", "/vcommission/click", "p1", "url"),
    ("cuelinks", "CueLinks", "/cuelinks/", "subid", "url"),
    ("cj", "CJ", "/cj/click-7811204-13640221", "sid", "url"),
]


@pytest.mark.parametrize(("key", "name", "path", "click", "destination"), LINKS)
async def test_a_shopper_arrives_through_each_network_by_its_own_parameters(
    networks: httpx2.AsyncClient, key: str, name: str, path: str, click: str, destination: str
) -> None:
    answer = await networks.get(path, params={click: CLICK, destination: DESTINATION})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert f"You have arrived at www.kitaabghar.example through {name}</h1>" in answer.text
    assert f"<dd>{CLICK}</dd>" in answer.text
    assert f"<dd>{DESTINATION.replace('&', '&amp;')}</dd>" in answer.text
    assert "In production the shopper would now be at the merchant." in answer.text
    arrivals = (await networks.get("/arrivals")).json()
    assert arrivals["total"] == 1
    assert arrivals["by_network"][key] == 1


@pytest.mark.parametrize(("key", "name", "path", "click", "destination"), LINKS)
async def test_a_link_without_the_networks_sub_id_is_refused_and_not_counted_as_arrival(
    networks: httpx2.AsyncClient, key: str, name: str, path: str, click: str, destination: str
) -> None:
    answer = await networks.get(path, params={"click_id": CLICK, destination: DESTINATION})
    assert answer.status_code == 400
    assert f"This link carries no click id for {name}</h1>" in answer.text
    assert f"{click}={{click_id}}" in answer.text
    assert (await networks.get("/arrivals")).json() == {
        "total": 0,
        "by_network": {"admitad": 0, "vcommission": 0, "cuelinks": 0, "cj": 0},
        "without_click_id": {
            "admitad": 0,
            "vcommission": 0,
            "cuelinks": 0,
            "cj": 0,
            key: 1,
        },
    }


@pytest.mark.parametrize("sub_id", ["", "   ", "{click_id}", "[[[subid]]]"])
async def test_an_empty_or_unfilled_sub_id_is_none(
    networks: httpx2.AsyncClient, sub_id: str
) -> None:
    answer = await networks.get("/cuelinks/", params={"subid": sub_id, "url": DESTINATION})
    assert answer.status_code == 400


async def test_what_comes_with_the_link_is_shown_as_text(networks: httpx2.AsyncClient) -> None:
    script = "<script>alert(1)</script>"
    answer = await networks.get("/cuelinks/", params={"subid": script, "url": f"http://{script}/"})
    assert answer.status_code == 200
    assert "<script" not in answer.text
    assert answer.text.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.parametrize("destination", [{}, {"url": "http://[::1"}, {"url": "not a URL"}])
async def test_a_shopper_arrives_without_a_usable_destination_too(
    networks: httpx2.AsyncClient, destination: dict[str, str]
) -> None:
    answer = await networks.get("/vcommission/click", params={"p1": CLICK, **destination})
    assert answer.status_code == 200
    assert "You have arrived at the merchant through vCommission</h1>" in answer.text


@pytest.mark.parametrize("path", ["/", "/admitad/", "/cj/click-1", "/cj/click-a-b", "/awin/cread"])
async def test_an_unknown_path_is_not_found(networks: httpx2.AsyncClient, path: str) -> None:
    answer = await networks.get(path, params={"subid": CLICK, "sid": CLICK})
    assert answer.status_code == 404


async def test_looking_ahead_is_not_arriving(networks: httpx2.AsyncClient) -> None:
    answer = await networks.head("/cuelinks/", params={"subid": CLICK, "url": DESTINATION})
    assert (answer.status_code, answer.content) == (200, b"")
    assert (await networks.get("/arrivals")).json()["total"] == 0


async def test_who_arrives_is_told_of_with_the_click_id() -> None:
    landed: list[str] = []
    transport = httpx2.ASGITransport(networks_app(landed.append))
    async with httpx2.AsyncClient(transport=transport, base_url="http://networks") as client:
        for number, (_, _, path, click, destination) in enumerate(LINKS):
            await client.get(path, params={click: f"{CLICK}-{number}", destination: DESTINATION})
            await client.get(path, params={destination: DESTINATION})
            await client.head(path, params={click: CLICK, destination: DESTINATION})
    assert landed == [f"{CLICK}-{number}" for number in range(4)]
