"""The sample catalogue of the demo: merchants, offers and users that are the same on every start.

The shops are invented and live under names that are reserved for examples, so that nobody's real
site meets the demo's shoppers. Ids are derived from fixed names, so a link printed once stays good.
"""

from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID, uuid5

import msgspec

from couponflow.catalogue.rows import MerchantRow, OfferRow, UserRow

_NAMESPACE = UUID("5a2f8d0c-6b7e-5c41-9d35-c0f1e2a3b4d5")
_LONG_AGO = datetime(2024, 1, 1, tzinfo=UTC)
_ENDED = datetime(2024, 11, 1, tzinfo=UTC)
_FAR_AHEAD = datetime(2100, 1, 1, tzinfo=UTC)


class SampleMerchant(msgspec.Struct, frozen=True):
    """A shop with the path and query of its link at its network, and its five offers."""

    slug: str
    name: str
    network: str
    link: str
    shop: str
    fallback: str | None
    cashback_percent: str
    offers: tuple[tuple[str, str], ...]
    """Title and path of each; the place in this list is part of the offer's id."""


_MERCHANTS = (
    SampleMerchant(
        slug="vastrika",
        name="Vastrika",
        network="admitad",
        link="g/8k2vastrika41/?subid={click_id}&ulp={url}",
        shop="https://www.vastrika.example",
        fallback="/sale",
        cashback_percent="6.5",
        offers=(
            ("Flat 40% off handloom sarees", "/sarees/handloom?sort=new&utm_source=affiliate"),
            ("Buy 2 get 1 free on cotton kurtas", "/kurtas/cotton?offer=B2G1"),
            ("Festive lehengas from ₹2,999", "/lehengas?price=2999-5999&occasion=festive"),
            ("Kolhapuri footwear, extra 15% off", "/footwear/kolhapuri?coupon=KOLHA15"),
            ("Diwali early access: up to 70% off", "/sale/diwali-early-access"),
        ),
    ),
    SampleMerchant(
        slug="gadgetwala",
        name="GadgetWala",
        network="admitad",
        link="g/p41gadgetwl93/?subid={click_id}&ulp={url}",
        shop="https://www.gadgetwala.example",
        fallback=None,
        cashback_percent="2.25",
        offers=(
            ("5G phones under ₹15,000", "/mobiles?network=5g&max_price=15000"),
            ("Noise-cancelling earbuds at ₹1,499", "/audio/earbuds/anc-pro-2"),
            ("Laptops: instant ₹5,000 bank discount", "/laptops?bank_offer=5000"),
            ("Smart TVs: exchange and save 20%", "/tv/smart?exchange=true&size=43,55"),
            ("Republic Day power bank deal", "/deals/republic-day/power-banks"),
        ),
    ),
    SampleMerchant(
        slug="nordhaus",
        name="Nordhaus Living",
        network="admitad",
        link="g/zq7nordhaus05/?subid={click_id}&ulp={url}",
        shop="https://www.nordhaus.example",
        fallback="/en-gb/outlet",
        cashback_percent="4",
        offers=(
            ("Oak dining sets, 25% off", "/en-gb/dining/oak?filter=set"),
            ("Free delivery over £50", "/en-gb/delivery-offer"),
            ("Linen bedding bundles", "/en-gb/bedroom/linen?bundle=1"),
            ("Clearance: desk lamps from £12", "/en-gb/clearance/lighting/desk"),
            ("New customers: £10 off £80", "/en-gb/welcome?code=HEJ10"),
        ),
    ),
    SampleMerchant(
        slug="tiffinbox",
        name="TiffinBox",
        network="vcommission",
        link="click?campaign_id=10452&pub_id=98117&p1={click_id}&url={url}",
        shop="https://www.tiffinbox.example",
        fallback="/restaurants",
        cashback_percent="8",
        offers=(
            ("60% off your first order", "/welcome?code=FIRST60"),
            ("Free delivery on biryani", "/cuisine/biryani?free_delivery=1"),
            ("Monthly lunch plan at ₹99 a meal", "/plans/lunch?duration=30"),
            ("South Indian breakfast under ₹149", "/breakfast/south-indian?max=149"),
            ("Weekend pizza party: buy 1 get 1", "/cuisine/pizza?offer=BOGO&day=weekend"),
        ),
    ),
    SampleMerchant(
        slug="yatra-nest",
        name="YatraNest Travel",
        network="vcommission",
        link="click?campaign_id=11873&pub_id=98117&p1={click_id}&url={url}",
        shop="https://www.yatranest.example",
        fallback="/deals",
        cashback_percent="3.5",
        offers=(
            ("Domestic flights: ₹750 off", "/flights/domestic?promo=FLY750"),
            ("Goa hotels, up to 35% off", "/hotels/goa?stars=4,5&refundable=true"),
            ("Volvo buses: flat 12% cashback", "/bus?operator=volvo"),
            ("Kerala houseboats from ₹6,500", "/packages/kerala/houseboats?nights=1"),
            (
                "Student fares to London and Toronto",
                "/flights/international?fare=student&to=LHR,YYZ",
            ),
        ),
    ),
    SampleMerchant(
        slug="aarogya-mart",
        name="Aarogya Mart",
        network="vcommission",
        link="click?campaign_id=10991&pub_id=98117&p1={click_id}&url={url}",
        shop="https://www.aarogyamart.example",
        fallback=None,
        cashback_percent="5",
        offers=(
            ("25% off medicines over ₹999", "/medicines?coupon=HEALTH25"),
            ("Full body check-up at ₹1,199", "/lab-tests/full-body?home_collection=yes"),
            ("Whey protein, buy 1 get shaker free", "/nutrition/whey-protein"),
            ("Ayurvedic skin care combo", "/ayurveda/skin-care?combo=3"),
            ("Blood pressure monitors, 45% off", "/devices/bp-monitors?sort=discount"),
        ),
    ),
    SampleMerchant(
        slug="kitaab-ghar",
        name="Kitaab Ghar",
        network="cuelinks",
        link="?cid=48211&source=linkkit&subid={click_id}&url={url}",
        shop="https://www.kitaabghar.example",
        fallback="/bestsellers",
        cashback_percent="7",
        offers=(
            ("Hindi classics, 3 for ₹499", "/hindi/classics?q=प्रेमचंद&offer=3for499"),
            ("UPSC preparation sets, 30% off", "/exams/upsc?format=set"),
            ("Children's picture books from ₹79", "/children/picture-books?age=3-5"),
            ("Signed first editions", "/collectors/signed?availability=in%20stock"),
            ("World Book Day: flat 50% off", "/events/world-book-day"),
        ),
    ),
    SampleMerchant(
        slug="mitti-and-co",
        name="Mitti & Co",
        network="cuelinks",
        link="?cid=48377&source=linkkit&subid={click_id}&url={url}",
        shop="https://www.mittiandco.example",
        fallback="/collections/all",
        cashback_percent="10",
        offers=(
            ("Terracotta planters, set of 4", "/collections/planters?variant=set-4"),
            ("Blue pottery dinner sets, 20% off", "/collections/blue-pottery#dinner-sets"),
            ("Brass diyas for the festive table", "/collections/brass-diyas"),
            ("Hand-block printed cushions from ₹349", "/collections/cushions?print=hand-block"),
            ("Gift hampers with free engraving", "/collections/hampers?engraving=free"),
        ),
    ),
    SampleMerchant(
        slug="sole-district",
        name="Sole District",
        network="cuelinks",
        link="?cid=50924&source=linkkit&subid={click_id}&url={url}",
        shop="https://www.soledistrict.example",
        fallback="/outlet",
        cashback_percent="5.75",
        offers=(
            ("Running shoes, up to 50% off", "/running?discount=30-50"),
            ("Members: early access to retro drops", "/drops/retro?access=early"),
            ("Kids' trainers, 2 pairs for ₹2,499", "/kids/trainers?bundle=2"),
            ("Trail shoes with free socks", "/trail?gift=socks&terrain=wet,rocky"),
            ("Leather boots, end of season", "/boots/leather?season=winter"),
        ),
    ),
    SampleMerchant(
        slug="stayhaven",
        name="StayHaven",
        network="cj",
        link="click-7811204-13640221?sid={click_id}&url={url}",
        shop="https://www.stayhaven.example",
        fallback="/offers",
        cashback_percent="4.5",
        offers=(
            ("Bali villas: stay 4, pay 3", "/id/bali/villas?stay=4&pay=3"),
            ("City breaks in Europe from €59", "/europe/city-breaks?max=59&currency=EUR"),
            ("Singapore: free cancellation", "/sg/hotels?cancellation=free"),
            ("Last-minute weekends, 30% off", "/last-minute?when=weekend"),
            ("Work from anywhere: monthly rates", "/monthly?wifi=fast&desk=1"),
        ),
    ),
    SampleMerchant(
        slug="lumen-skin",
        name="Lumen Skin",
        network="cj",
        link="click-7811204-14028865?sid={click_id}&url={url}",
        shop="https://www.lumenskin.example",
        fallback="/us/bestsellers",
        cashback_percent="12",
        offers=(
            ("Vitamin C serum: 20% off", "/us/serums/vitamin-c?size=30ml"),
            ("Free mini kit over $45", "/us/gifts/mini-kit?min=45"),
            ("Refills: save 15% for ever", "/us/refills?subscribe=yes"),
            ("SPF 50 duo", "/us/sun/spf-50-duo"),
            ("Build your own routine, 25% off 3", "/us/routine-builder?step=1&pick=3"),
        ),
    ),
    SampleMerchant(
        slug="cloudforge-hosting",
        name="CloudForge Hosting",
        network="cj",
        link="click-7811204-12977530?sid={click_id}&url={url}",
        shop="https://www.cloudforge.example",
        fallback="/pricing",
        cashback_percent="25",
        offers=(
            ("Shared hosting: 75% off the first year", "/shared?term=12&promo=START75"),
            (".com domains at $6.99", "/domains?tld=com&promo=COM699"),
            ("Managed WordPress, first month free", "/wordpress?trial=30"),
            ("Virtual servers from $4 a month", "/vps?plan=s1&region=bom,fra,nyc"),
            ("Free SSL and migration", "/migrate?from=any&ssl=free"),
        ),
    ),
)

# The ways an offer can be unavailable, each once or twice: by merchant and place in its list.
_EXPIRED = {("vastrika", 4), ("gadgetwala", 4)}  # with and without a fallback page
_NOT_YET_STARTED = {("kitaab-ghar", 4)}
_INACTIVE = {("sole-district", 4)}

_USERS = (
    ("Aarav Sharma", "aarav.sharma@example.in", "+910000000001"),
    ("Diya Patel", "diya.patel@example.in", "+910000000002"),
    ("Vihaan Reddy", "vihaan.reddy@example.in", "+910000000003"),
    ("Ananya Iyer", "ananya.iyer@example.in", "+910000000004"),
    ("Kabir Singh Gill", "kabir.gill@example.in", "+910000000005"),
    ("Meera Nair", "meera.nair@example.in", "+910000000006"),
    ("Rohan Deshmukh", "rohan.deshmukh@example.in", "+910000000007"),
    ("Ishita Banerjee", "ishita.banerjee@example.in", "+910000000008"),
    ("Arjun Menon", "arjun.menon@example.in", "+910000000009"),
    ("Zoya Khan", "zoya.khan@example.in", "+910000000010"),
    ("Dev Chaudhary", "dev.chaudhary@example.in", "+910000000011"),
    ("Lakshmi Subramanian", "lakshmi.s@example.in", "+910000000012"),
    ("Emma Clarke", "emma.clarke@example.com", "+447700900101"),
    ("Oliver Hughes", "oliver.hughes@example.com", "+447700900102"),
    ("Sofia Rossi", "sofia.rossi@example.com", None),
    ("Lukas Schäfer", "lukas.schaefer@example.com", None),
    ("Grace Johnson", "grace.johnson@example.com", "+12025550143"),
    ("Mateo García", "mateo.garcia@example.com", None),
    ("Mei Lin Tan", "meilin.tan@example.com", None),
    ("Noah Williams", "noah.williams@example.com", "+12025550178"),
)


def sample_merchants(sandbox_url: str) -> tuple[MerchantRow, ...]:
    """The merchants, with links shaped like their networks' own, but to the sandbox."""
    base = sandbox_url.rstrip("/")
    return tuple(
        MerchantRow(
            merchant_id=_fixed_id("merchant", merchant.slug),
            slug=merchant.slug,
            name=merchant.name,
            network=merchant.network,
            tracking_template=f"{base}/{merchant.network}/{merchant.link}",
            fallback_url=merchant.shop + merchant.fallback if merchant.fallback else None,
            cashback_percent=Decimal(merchant.cashback_percent),
        )
        for merchant in _MERCHANTS
    )


def sample_offers() -> tuple[OfferRow, ...]:
    """The offers: all but four can be followed now and for ever."""
    return tuple(
        _offer(merchant, place, title, path)
        for merchant in _MERCHANTS
        for place, (title, path) in enumerate(merchant.offers)
    )


def sample_users() -> tuple[UserRow, ...]:
    """The shoppers."""
    return tuple(
        UserRow(user_id=_fixed_id("user", email), email=email, mobile=mobile, name=name)
        for name, email, mobile in _USERS
    )


def _offer(merchant: SampleMerchant, place: int, title: str, path: str) -> OfferRow:
    key = (merchant.slug, place)
    return OfferRow(
        offer_id=_fixed_id("offer", f"{merchant.slug}/{place}"),
        merchant_slug=merchant.slug,
        title=title,
        url=merchant.shop + path,
        starts_at=_FAR_AHEAD if key in _NOT_YET_STARTED else _LONG_AGO,
        expires_at=_ENDED if key in _EXPIRED else None,
        active=key not in _INACTIVE,
    )


def _fixed_id(what: str, name: str) -> str:
    return str(uuid5(_NAMESPACE, f"{what}/{name}"))
