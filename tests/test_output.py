import pytest

from simcse_kit.errors import UserError
from simcse_kit.output import check_new_directory, check_output, new_directory, replacing


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


def test_a_new_directory_is_made_with_the_folders_above_it(tmp_path):
    path = tmp_path / "runs" / "first" / "tokens"
    check_new_directory(path)
    assert not (tmp_path / "runs").exists()
    with new_directory(path) as temporary:
        temporary.mkdir()
        (temporary / "file").touch()
    assert [item.name for item in path.iterdir()] == ["file"]
    with pytest.raises(UserError, match="is there already"):
        check_new_directory(path)
    with pytest.raises(UserError, match="file is a file"):
        check_new_directory(path / "file" / "below")


def test_an_empty_directory_is_replaced_be_it_behind_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    check_new_directory(tmp_path / "link")
    with new_directory(tmp_path / "link") as temporary:
        temporary.mkdir()
        (temporary / "file").touch()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "file").is_file()


def test_a_mount_point_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(type(tmp_path), "is_mount", lambda path: path == tmp_path)
    with pytest.raises(UserError, match="mount point"):
        check_new_directory(tmp_path)
