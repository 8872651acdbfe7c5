import csv
import gzip
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simcse_kit import encode
from simcse_kit.cli import encode as command

MODEL = "all-MiniLM-L6-v2"
TEXTS = ["A cat sleeps.", "", 'She said "no", twice.', "NA", "Ünïcode\u2028ﬁts ☂", "A cat sleeps."]


def as_csv(texts, **options):
    def write(path, column):
        with path.open("w", newline="") as file:
            rows = csv.writer(file, **options)
            rows.writerows([["id", column], *([i, text] for i, text in enumerate(texts))])

    return write


def write_jsonl_gz(path, column):
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps({"id": i, column: text}) + "\n" for i, text in enumerate(TEXTS))


def write_parquet(path, column):
    pq.write_table(pa.table({column: TEXTS}), path)


INPUTS = {
    "in.txt": (lambda path, column: path.write_text("\n".join(TEXTS) + "\n"), None, []),
    "in.csv": (as_csv(TEXTS), "text", []),
    "in.jsonl.gz": (write_jsonl_gz, "body", ["--column", "body"]),
    "in.parquet": (write_parquet, "whatever", []),
}


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
@pytest.mark.parametrize("name", INPUTS)
def test_row_i_of_the_output_is_row_i_of_the_input(name, suffix, tmp_path, capsys):
    write, column, options = INPUTS[name]
    source, output = tmp_path / name, tmp_path / f"out{suffix}"
    write(source, column)
    output.write_text("an older file")
    assert command.main([MODEL, str(source), "-o", str(output), *options]) == 0
    expected = np.stack([encode(text) for text in TEXTS])
    if suffix == ".npy":
        vectors = np.load(output)
    else:
        table = pq.read_table(output)
        assert table.schema.names == ["text", "embedding"]
        assert table["embedding"].type == pa.list_(pa.float32(), 384)
        assert table["text"].to_pylist() == TEXTS
        vectors = np.array(table["embedding"].to_pylist(), dtype=np.float32)
    assert vectors.dtype == np.float32 and vectors.shape == (6, 384)
    np.testing.assert_allclose(vectors, expected, atol=2e-6)
    assert sorted(tmp_path.iterdir()) == sorted([source, output])
    out, err = capsys.readouterr()
    assert err == "" and out.count("\n") == 1
    assert out.startswith(f"{output}: 6 rows x 384 dimensions") and "sentences/s" in out


@pytest.mark.parametrize(
    ("options", "unit"),
    [([], True), (["--normalize"], True), (["--no-normalize"], False), (["--pooling", "cls"], True)],
)
def test_options_reach_the_encoder(options, unit, tmp_path):
    source, output = tmp_path / "in.txt", tmp_path / "out.npy"
    source.write_text("A cat sleeps.\nDogs bark.\n")
    assert command.main([MODEL, str(source), "-o", str(output), *options]) == 0
    vectors = np.load(output)
    assert bool(np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)) is unit
    mean_pooled = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    same = np.allclose(mean_pooled, encode(["A cat sleeps.", "Dogs bark."]), atol=1e-5)
    assert bool(same) is ("cls" not in options)


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_vectors_may_be_shorter_and_smaller(suffix, tmp_path):
    source, output = tmp_path / "in.txt", tmp_path / f"out{suffix}"
    source.write_text("\n".join(TEXTS) + "\n")
    assert command.main([MODEL, str(source), "-o", str(output), "--truncate-dim", "64", "--precision", "ubinary"]) == 0
    found = np.load(output) if suffix == ".npy" else np.array(pq.read_table(output)["embedding"].to_pylist())
    expected = np.packbits(np.stack([encode(text) for text in TEXTS])[:, :64] > 0, axis=1)
    assert found.shape == (6, 8)
    assert np.unpackbits(found.astype(np.uint8) ^ expected).sum() <= 1  # a value next to 0 may round either way


def test_the_command_says_one_line_and_nothing_else(tmp_path):
    source, output = tmp_path / "in.txt", tmp_path / "out.npy"
    source.write_text("A cat sleeps.\n")
    arguments = [sys.executable, "-m", "simcse_kit.cli.encode", MODEL, source, "-o", output]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr, result.stdout.count("\n")) == (0, "", 1)
    assert np.load(output).shape == (1, 384)


FILES = {
    "in.txt": "one\ntwo\n",
    "empty.txt": "",
    "two.csv": "premise,hypothesis\na,b\n",
    "null.jsonl": '{"text": "a"}\n{"text": null}\n',
    "text.csv": "text\na\n",
}


@pytest.mark.parametrize(
    ("source", "output", "options", "message"),
    [
        ("in.txt", "out.npz", [], "vectors are written as .npy or .parquet"),
        ("in.txt", "missing/out.npy", [], "missing' does not exist"),
        ("in.txt", "out.npy", ["--column", "text"], "has no columns; leave --column out"),
        ("empty.txt", "out.npy", [], "empty.txt has no rows"),
        ("missing.txt", "out.npy", [], "missing.txt"),
        ("in.docx", "out.npy", [], "the suffix names no format"),
        ("two.csv", "out.npy", [], "Name it with --column: premise, hypothesis"),
        ("two.csv", "out.npy", ["--column", "premis"], "did you mean 'premise'?"),
        ("null.jsonl", "out.npy", [], "null.jsonl, row 2"),
        ("text.csv", "text.csv", [], "vectors are written as"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_file(source, output, options, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "open_encoder", None)
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    assert command.main([MODEL, str(tmp_path / source), "-o", str(tmp_path / output), *options]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.startswith("error: ") and err.count("\n") == 1
    assert out == "" and {path.name: path.read_text() for path in tmp_path.iterdir()} == FILES


def test_the_input_is_not_overwritten(tmp_path, capsys):
    path = tmp_path / "in.parquet"
    write_parquet(path, "text")
    assert command.main([MODEL, str(path), "-o", str(path)]) == 2
    assert "is the input itself" in capsys.readouterr().err
    assert pq.read_table(path).schema.names == ["text"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    source, output = tmp_path / "in.txt", tmp_path / "out.npy"
    source.write_text("A cat sleeps.\n")
    output.write_text("an older file")

    def full_disk(file, array):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        command.main([MODEL, str(source), "-o", str(output)])
    assert output.read_text() == "an older file"
    assert sorted(tmp_path.iterdir()) == [source, output]
