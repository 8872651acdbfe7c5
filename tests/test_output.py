import pytest

from simcse_kit.errors import UserError
from simcse_kit.output import check_output, replacing


@pytest.mark.parametrize("old", [None, "old"])
def test_a_file_appears_whole_or_not_at_all(tmp_path, old):
    path = tmp_path / "out.txt"
    if old is not None:
        path.write_text(old)

    def content():
        return path.read_text() if path.exists() else None

    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert content() == old
    assert len(list(tmp_path.iterdir())) == (old is not None)

    with replacing(path) as temporary:
        temporary.write_text("whole")
        assert content() == old
    assert content() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_takes_no_file_is_refused(tmp_path):
    check_output(tmp_path / "out.txt")
    with pytest.raises(UserError, match="is a directory"):
        check_output(tmp_path)
    with pytest.raises(UserError, match=r"missing' does not exist"):
        check_output(tmp_path / "missing" / "out.txt")
    with pytest.raises(UserError, match="does not exist"):
        (tmp_path / "file").touch()
        check_output(tmp_path / "file" / "out.txt")
