import msgspec

from couponflow.kernel.problems import CONTENT_TYPE, Problem, problem_type


def test_a_problem_is_what_rfc_9457_says() -> None:
    problem = Problem(problem_type("offer-ended"), "Ended", 410, "It has ended.")
    assert CONTENT_TYPE == "application/problem+json"
    assert msgspec.json.decode(problem.encode()) == {
        "type": "urn:couponflow:problem:offer-ended",
        "title": "Ended",
        "status": 410,
        "detail": "It has ended.",
    }


def test_what_is_not_known_is_left_out() -> None:
    encoded = Problem(problem_type("internal"), "Oops", 500).encode()
    assert set(msgspec.json.decode(encoded)) == {"type", "title", "status"}


def test_where_the_fault_is_and_in_which_request_may_be_said() -> None:
    problem = Problem(problem_type("x"), "X", 422, path="$.to", request_id="r1")
    decoded = msgspec.json.decode(problem.encode())
    assert (decoded["path"], decoded["request_id"]) == ("$.to", "r1")
