from pathlib import Path

from couponflow.redirect import set_aside


def test_a_record_is_kept_once_however_often_it_comes(tmp_path: Path) -> None:
    folder = tmp_path / "set-aside"
    first = set_aside.keep(folder, b"bad")
    assert set_aside.keep(folder, b"bad") == first == folder / set_aside.file_name(b"bad")
    assert [path.read_bytes() for path in folder.iterdir()] == [b"bad"]


def test_a_copy_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / set_aside.file_name(b"bad")
    path.with_suffix(".partial").write_bytes(b"b")
    assert set_aside.keep(tmp_path, b"bad") == path
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(path.name, b"bad")]
