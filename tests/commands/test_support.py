import errno
from collections.abc import Awaitable, Callable

import psycopg
import pytest

from couponflow.commands.support import fail, print_json, run_async
from couponflow.kernel.database import DatabaseAway
from couponflow.kernel.http import PortUnavailable
from couponflow.roles import RolesInvalid


def raising(error: BaseException) -> Callable[[], Awaitable[None]]:
    async def work() -> None:
        raise error

    return work


def ended(error: BaseException) -> int | str | None:
    with pytest.raises(SystemExit) as exit_:
        run_async(raising(error))
    return exit_.value.code


def test_the_result_of_the_work_is_returned() -> None:
    async def work() -> int:
        return 7

    assert run_async(work) == 7


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (PortUnavailable("the port [::]:1 is taken"), 1, "error: the port [::]:1 is taken\n"),
        (RolesInvalid("no such role"), 2, "error: no such role\n"),
        (
            ExceptionGroup("x", [ExceptionGroup("y", [DatabaseAway("away")])]),
            1,
            "error: away\n",
        ),
        (
            ExceptionGroup("x", [DatabaseAway("away"), PortUnavailable("taken")]),
            1,
            "error: away; taken\n",
        ),
        (
            NotADirectoryError(errno.ENOTDIR, "Not a directory", "/x/var"),
            1,
            "error: /x/var cannot be used: Not a directory; mend that, or set COUPONFLOW_VAR_DIR "
            "to a folder that can be written to\n",
        ),
        (
            ExceptionGroup("x", [OSError(errno.ENOSPC, "No space left on device")]),
            1,
            "error: the disk cannot be used: No space left on device; mend that, or set "
            "COUPONFLOW_VAR_DIR to a folder that can be written to\n",
        ),
        (
            psycopg.DataError("date too large\n(after year 10K)\nDETAIL:  private"),
            1,
            "error: PostgreSQL refused: date too large (after year 10K)\n",
        ),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
)
def test_errors_for_the_operator_are_one_text_and_an_exit_code(
    capfd: pytest.CaptureFixture[str], error: BaseException, code: int, text: str
) -> None:
    assert ended(error) == code
    assert capfd.readouterr() == ("", text)


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_async(raising(ZeroDivisionError()))
    with pytest.raises(ConnectionResetError):
        run_async(raising(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")))
    mixed = ExceptionGroup("x", [DatabaseAway("away"), ZeroDivisionError()])
    with pytest.raises(ExceptionGroup):
        run_async(raising(mixed))


def test_markup_in_a_text_is_shown_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fail("[redirect] bind and [bold]this[/]")
    assert capfd.readouterr().err == "error: [redirect] bind and [bold]this[/]\n"


def test_json_is_printed_for_people_too(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [1], "b": ValueError("as text")})
    assert capsys.readouterr().out == '{\n  "a": [\n    1\n  ],\n  "b": "as text"\n}\n'
