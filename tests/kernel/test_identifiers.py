from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from couponflow.kernel.identifiers import Uuid7Generator, is_canonical_uuid

NOW = 1_790_000_000.123


def test_an_id_is_a_canonical_uuid_of_version_7_with_its_time() -> None:
    made = Uuid7Generator().make(NOW)
    parsed = UUID(made)
    assert str(parsed) == made
    assert is_canonical_uuid(made)
    assert (parsed.version, parsed.variant) == (7, RFC_4122)
    assert parsed.int >> 80 == 1_790_000_000_123


@given(st.floats(0, 2**48 / 1000 - 1), st.binary(min_size=1, max_size=64))
def test_any_moment_and_any_randomness_make_a_version_7_id(now: float, seed: bytes) -> None:
    generator = Uuid7Generator(lambda count: (seed * count)[:count])
    for _ in range(3):
        parsed = UUID(generator.make(now))
        assert (parsed.version, parsed.variant) == (7, RFC_4122)
        assert parsed.int >> 80 == int(now * 1000)


def test_every_random_digit_is_used() -> None:
    generator = Uuid7Generator(lambda count: bytes([0x12, 0x34, 0x5F] * count)[:count])
    assert generator.make(0) == "00000000-0000-7123-8" + "5f1" + "-" + "2345f12345f1"


def test_all_four_variants_come_from_the_randomness() -> None:
    generator = Uuid7Generator()
    assert {generator.make(NOW)[19] for _ in range(1000)} == set("89ab")


def test_a_hundred_thousand_ids_are_unique_and_sorted_by_millisecond() -> None:
    generator = Uuid7Generator()
    made = [
        generator.make((1_790_000_000_000.5 + number // 10) / 1000) for number in range(100_000)
    ]
    assert len(set(made)) == 100_000
    times = [text[:13] for text in made]
    assert times == sorted(times)
    assert len(set(times)) == 10_000


def test_a_clock_that_goes_back_is_followed() -> None:
    generator = Uuid7Generator()
    moments = [NOW, NOW - 1, NOW]
    times = [UUID(generator.make(moment)).int >> 80 for moment in moments]
    assert times == [int(moment * 1000) for moment in moments]


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("01920000-0000-7000-8000-00000000000a", True),
        ("01920000-0000-7000-8000-00000000000A", False),
        ("0192000000007000800000000000000a", False),
        ("{01920000-0000-7000-8000-00000000000a}", False),
        ("01920000-0000-7000-8000-00000000000a\n", False),
        ("01920000-0000-7000-8000-00000000000", False),
        ("", False),
    ],
)
def test_only_lower_case_text_with_hyphens_is_canonical(text: str, canonical: bool) -> None:
    assert bool(is_canonical_uuid(text)) is canonical
