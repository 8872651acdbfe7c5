import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import datasets
import huggingface_hub.constants
import pyarrow
import pyarrow.parquet
import pytest
from small_files import write_stsb

from simcse_kit.data.hub import fetch_file, load_split, stated_sha256
from simcse_kit.data.readers import data_sha256, read_columns
from simcse_kit.data.sts import load_evaluation
from simcse_kit.errors import UserError

COMMIT = "c" * 40


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as serves files of data sets: what the real client sends and needs."""

    files = {}  # noqa: RUF012
    missing = "EntryNotFound"

    def do_HEAD(self):
        _, _, owner, name, _, revision, path = self.path.split("/", 6)
        content = self.files.get((f"{owner}/{name}", revision, path))
        self.send_response(404 if content is None else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        if content is None:
            self.send_header("X-Error-Code", self.missing)
        else:
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        return content

    def do_GET(self):
        self.wfile.write(self.do_HEAD())

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine, with the client's cache in a temporary folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (Hub,), {"files": {}}))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    point_client_at(f"http://127.0.0.1:{server.server_port}", monkeypatch)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield server.RequestHandlerClass
    server.shutdown()
    server.server_close()
    thread.join()


def point_client_at(endpoint, monkeypatch):
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def put(hub, content, path, revision="main"):
    for name in (revision, COMMIT):
        hub.files["owner/name", name, path] = content


@pytest.mark.parametrize(
    ("at", "revision"),
    [("", "main"), ("@v1.0", "v1.0"), ("@refs/pr/3", "refs%2Fpr%2F3"), ("@refs%2Fpr%2F3", "refs%2Fpr%2F3")],
)
def test_fetch_and_read_a_file(hub, at, revision):
    content = b"sent0,sent1\nx,y\n"
    put(hub, content, "deep/nli.csv", revision)
    url = f"hf://datasets/owner/name{at}/deep/nli.csv"
    assert fetch_file(url).read_bytes() == content
    assert read_columns(url, ["sent1"]) == {"sent1": ["y"]}
    assert data_sha256(url) == {url: hashlib.sha256(content).hexdigest()}
    assert stated_sha256(url) == hashlib.sha256(content).hexdigest()


def test_what_was_fetched_once_serves_when_the_hub_is_out_of_reach(hub, monkeypatch):
    url = "hf://datasets/owner/name/pairs.tsv"
    put(hub, b"sentence1\tsentence2\tscore\na\tb\t1\n", "pairs.tsv")
    fetched = fetch_file(url)
    point_client_at("http://127.0.0.1:1", monkeypatch)
    assert fetch_file(url) == fetched
    assert load_evaluation(url, task="mine", split="dev").subsets[0].sentences1 == ["a"]
    for other in ("hf://datasets/owner/name/other.tsv", "hf://datasets/owner/name@v2/pairs.tsv"):
        with pytest.raises(UserError, match=rf"^{other}: not to be had .*name a local file$"):
            fetch_file(other)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("EntryNotFound", "the data set has no such file"),
        ("RevisionNotFound", "no such revision"),
        ("RepoNotFound", "no such data set, or it is private"),
        ("GatedRepo", "access must be asked for"),
    ],
)
def test_what_the_hub_does_not_have(hub, code, said):
    hub.missing = code
    with pytest.raises(UserError, match=rf"^hf://datasets/owner/name/x\.csv: .*{said}[^\n]*$"):
        fetch_file("hf://datasets/owner/name/x.csv")


@pytest.mark.parametrize("url", ["hf://owner/name/x.csv", "hf://datasets/name/x.csv", "hf://datasets/owner/name@v1"])
def test_malformed_addresses(url):
    with pytest.raises(UserError, match="is not of the form hf://datasets/owner/name@revision/file"):
        fetch_file(url)


@pytest.fixture
def local_dataset(tmp_path, monkeypatch, no_network):
    """A folder of parquet files, which the datasets library opens by the same call as a repository on the hub."""
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    rows = {"sentence1": ["a", "NA"], "sentence2": ["b", "d"], "label": [0, 4]}
    pyarrow.parquet.write_table(pyarrow.table(rows), folder / "validation.parquet")
    nulls = {"sentence1": ["a", None]}
    pyarrow.parquet.write_table(pyarrow.table(nulls), folder / "train.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


def test_a_split_through_the_datasets_library(local_dataset, tmp_path):
    (tmp_path / "owner" / "name" / "train.parquet").unlink()
    source = "hub:owner/name:validation"
    assert load_split(source).num_rows == 2
    read = read_columns(source, ["sentence2", "sentence1", "label"], labels=["label"])
    assert read == {"sentence2": ["b", "d"], "sentence1": ["a", "NA"], "label": ["0", "4"]}
    task = load_evaluation(source, task="mine", split="dev")
    assert (task.name, task.split, task.subsets[0].scores.tolist()) == ("mine", "validation", [0.0, 4.0])
    assert data_sha256(source) == data_sha256(source)
    assert data_sha256(source).keys() == {source}
    with pytest.raises(UserError, match="hub:owner/name:validation: no column 'sentence'"):
        read_columns(source, ["sentence"])


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("hub:o/n:test", ("o/n", None, "test", None)),
        ("hub:o/n@v1.0:train[:10]", ("o/n", None, "train[:10]", "v1.0")),
        ("hub:o/n@refs%2Fconvert%2Fparquet/en:dev", ("o/n", "en", "dev", "refs/convert/parquet")),
    ],
)
def test_the_parts_of_a_split_s_name(monkeypatch, name, asked):
    monkeypatch.setattr(
        datasets, "load_dataset", lambda repo, config, *, split, revision: (repo, config, split, revision)
    )
    assert load_split(name) == asked


def test_mistakes_in_a_split(local_dataset, tmp_path):
    (tmp_path / "owner" / "name" / "validation.parquet").unlink()
    with pytest.raises(UserError, match="hub:owner/name:train, row 2, column 'sentence1': null"):
        read_columns("hub:owner/name:train", ["sentence1"])
    with pytest.raises(UserError, match=r"^hub:owner/name:dev: [^\n]*Unknown split[^\n]*$"):
        read_columns("hub:owner/name:dev", ["sentence1"])


def test_a_data_set_that_is_not_cached_offline(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^hub:owner/name/config:train: not to be had [^\n]*$"):
        load_split("hub:owner/name/config:train")


def test_raw_stsb_comes_from_the_hub_where_no_folder_has_it(tmp_path, monkeypatch):
    asked = []

    def load_dataset(repo, config, *, split, revision):
        asked.append((repo, split, len(revision)))
        return datasets.Dataset.from_dict({"sentence1": ["A cat.", "x"], "sentence2": ["b", "y"], "score": [5.0, 0.2]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setenv("SIMCSE_KIT_DATA", str(tmp_path))
    (tmp_path / "STS").mkdir()
    for split, theirs in (("train", "train"), ("dev", "validation"), ("test", "test")):
        task = load_evaluation("senteval", task="stsb", split=split, text="raw")
        assert (task.name, task.split, task.text, task.subsets[0].name) == ("STSB", split, "raw", "STSB")
        assert task.subsets[0].sentences1 == ["A cat.", "x"] and asked[-1] == ("mteb/stsbenchmark-sts", theirs, 40)
    write_stsb(tmp_path / "raw" / "STSBenchmark")
    assert len(load_evaluation("senteval", task="STSB", split="dev", text="raw").subsets[0].scores) == 24
    assert len(asked) == 3
    with pytest.raises(UserError, match="STS12 has no raw text"):
        load_evaluation("senteval", task="STS12", split="test", text="raw")
