import string

from hypothesis import given
from hypothesis import strategies as st

from couponflow.kernel.request_ids import is_request_id

PLAIN = string.ascii_letters + string.digits
SANE = PLAIN + "._:-"


@given(st.text(SANE, min_size=1, max_size=128))
def test_plain_text_is_an_id_if_it_begins_with_a_letter_or_digit(text: str) -> None:
    assert is_request_id(text) == (text[0] in PLAIN)


@given(st.text(min_size=1), st.text(SANE))
def test_anything_else_in_it_makes_it_none(odd: str, around: str) -> None:
    assert is_request_id(f"a{around}{odd}") == (set(odd) <= set(SANE) and len(around + odd) < 128)
