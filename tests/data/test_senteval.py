import functools
import hashlib
import io
import tarfile

import huggingface_hub
import pytest

from simcse_kit.data import senteval
from simcse_kit.data.senteval import data_root, senteval_folders
from simcse_kit.data.sts import load_evaluation
from simcse_kit.errors import UserError


def tar_of(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


ARCHIVE = tar_of({"SICK/SICK_trial.txt": "header\n1\ta\tb\t3.6\tNEUTRAL\n", "STS/note": "x"})


@pytest.fixture
def assets(tmp_path, monkeypatch):
    """The hub's assets cache, empty, on a machine that has no data of its own."""
    folder = tmp_path / "assets"
    cached = functools.partial(huggingface_hub.cached_assets_path, assets_dir=folder)
    monkeypatch.setattr(huggingface_hub, "cached_assets_path", cached)
    monkeypatch.setattr(senteval, "data_root", lambda: None)
    return folder


@pytest.fixture
def published(tmp_path, monkeypatch, assets, no_network):
    """Stands for the hub: call it with an archive, and with the hash the hub states if that is not the archive's."""
    fetches = []

    def publish(content, stated=None):
        path = tmp_path / "senteval.tar"
        path.write_bytes(content)
        monkeypatch.setattr(senteval, "fetch_file", lambda url: fetches.append(url) or path)
        monkeypatch.setattr(senteval, "stated_sha256", lambda url: stated or hashlib.sha256(content).hexdigest())
        return fetches

    return publish


def test_the_archive_is_fetched_once_and_unpacked(published, assets):
    fetches = published(ARCHIVE)
    task = load_evaluation("senteval", task="SICKR", split="dev")
    assert (task.subsets[0].sentences1, task.subsets[0].scores.tolist()) == (["a"], [3.6])
    (folder,) = senteval_folders()
    assert assets in folder.parents
    assert (folder / "STS" / "note").read_text() == "x"
    assert fetches == ["hf://datasets/princeton-nlp/datasets-for-simcse/senteval.tar"]


@pytest.mark.parametrize(
    ("content", "stated", "said"),
    [
        pytest.param(ARCHIVE, "0" * 64, "the hub states 0000", id="wrong-hash"),
        pytest.param(tar_of({"STS/a": "x", "../../outside": "x"}), None, "outside", id="climbing-member"),
        pytest.param(ARCHIVE[:700], None, "cannot be unpacked", id="cut-off"),
        pytest.param(b"no tar at all", None, "cannot be unpacked", id="no-tar"),
    ],
)
def test_a_bad_archive_leaves_nothing_behind(published, assets, tmp_path, content, stated, said):
    published(content, stated)
    with pytest.raises(UserError, match=rf"^[^\n]*senteval\.tar[^\n]*{said}[^\n]*$"):
        senteval_folders()
    assert not list(tmp_path.rglob("outside"))
    assert [path for path in assets.rglob("*") if path.is_file()] == []
    published(ARCHIVE)
    assert (senteval_folders()[0] / "SICK").is_dir()


def test_offline_it_is_one_line(monkeypatch, assets):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"senteval\.tar: not to be had [^\n]*$"):
        senteval_folders()


def test_local_data_comes_first(monkeypatch, tmp_path):
    (tmp_path / "sts" / "SICK").mkdir(parents=True)
    (tmp_path / "transfer" / "MR").mkdir(parents=True)
    (tmp_path / "nli").mkdir()
    monkeypatch.setenv("SIMCSE_KIT_DATA", str(tmp_path))
    assert data_root() == tmp_path
    assert senteval_folders() == [tmp_path / "sts", tmp_path / "transfer"]
    (tmp_path / "data" / "downstream").mkdir(parents=True)
    assert senteval_folders()[0] == tmp_path
    monkeypatch.setenv("SIMCSE_KIT_DATA", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"SIMCSE_KIT_DATA names .*none, which is no folder"):
        data_root()


def test_by_default_the_data_lies_beside_the_checkout_and_not_beside_an_installed_package(monkeypatch, tmp_path):
    monkeypatch.delenv("SIMCSE_KIT_DATA", raising=False)
    module = tmp_path / "checkout" / "simcse_kit" / "data" / "senteval.py"
    monkeypatch.setattr(senteval, "__file__", str(module))
    (tmp_path / "shared" / "data").mkdir(parents=True)
    (tmp_path / "checkout").mkdir()
    assert data_root() is None
    (tmp_path / "checkout" / "pyproject.toml").touch()
    assert data_root() == tmp_path / "shared" / "data"
