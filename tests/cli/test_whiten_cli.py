import subprocess
import sys

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from simcse_kit import SentenceEncoder
from simcse_kit.cli import whiten as command
from simcse_kit.data.overlap import overlap, read_fingerprints


@pytest.fixture(scope="module")
def texts(sentences):
    words = sorted({word for sentence in sentences for word in sentence.split()})
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(words, size=8)) for _ in range(60)]


def test_the_whitened_model_is_written_and_said(tiny_checkpoint, texts, tmp_path, capfd):
    source, output = tmp_path / "texts.txt", tmp_path / "whitened"
    source.write_text("\n\n".join(texts) + "\n")
    output.mkdir()
    model = str(tiny_checkpoint("bert"))
    capfd.readouterr()
    assert command.main([model, str(source), "-o", str(output), "--dim", "16", "--pooling", "first_last_mean"]) == 0
    assert capfd.readouterr() == (f"{output}: 32 -> 16 dimensions, whitened on 60 texts\n", "")
    vectors = SentenceTransformer(str(output), device="cpu").encode(texts).astype(np.float64)
    assert vectors.shape == (60, 16)
    assert np.abs(np.cov(vectors, rowvar=False) - np.eye(16)).max() < 1e-4
    opened = SentenceEncoder.from_pretrained(output)
    assert (opened.pooling, opened.dimension, opened.normalize) == ("first_last_mean", 16, False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.txt", "whitened"]
    assert overlap(read_fingerprints(output), texts).train_rows == 60


@pytest.mark.parametrize("column", [None, "body"])
def test_columns_and_lengths_are_as_asked(tiny_checkpoint, texts, tmp_path, column):
    source, output = tmp_path / "texts.csv", tmp_path / "whitened"
    rows = "".join(f"x,{text}\n" for text in texts if "," not in text)
    source.write_text(f"id,{column or 'text'}\n{rows}x,\n")
    options = ["--column", column] if column else []
    model = str(tiny_checkpoint("bert"))
    assert command.main([model, str(source), "-o", str(output), "--dim", "4", "--max-length", "6", *options]) == 0
    opened = SentenceEncoder.from_pretrained(output)
    assert opened.max_length == 6
    vectors = opened.encode([text for text in texts if "," not in text]).astype(np.float64)
    assert np.abs(np.cov(vectors, rowvar=False) - np.eye(4)).max() < 1e-4


@pytest.mark.parametrize(
    ("source", "output", "options", "message"),
    [
        ("texts.txt", "new", ["--dim", "60"], "ask for 1 to 32"),
        ("texts.txt", "new", ["--dim", "3"], "3 dimensions take more than 3 distinct sentences, and there are 2; give"),
        ("texts.txt", "full", [], "full: is there already; name a new directory"),
        ("texts.txt", "texts.txt", [], "texts.txt: is there already; name a new directory"),
        ("texts.txt", "texts.txt/new", [], "texts.txt is a file"),
        ("missing.txt", "new", [], "missing.txt"),
        ("blank.txt", "new", [], "there are 0"),
        ("texts.txt", "new", ["--column", "text"], "has no columns; leave --column out"),
        ("texts.txt", "new", ["--pooling", "mena"], "pooling 'mena' is unknown"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tiny_checkpoint, tmp_path, capsys, source, output, options, message):
    (tmp_path / "full").mkdir()
    files = {"texts.txt": "one\ntwo\none\n", "blank.txt": "\n\n", "full/notes.txt": "mine"}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    arguments = [str(tiny_checkpoint("bert")), str(tmp_path / source), "-o", str(tmp_path / output), *options]
    assert command.main(arguments) == 2
    out, err = capsys.readouterr()
    assert message in err and err.startswith("error: ") and err.count("\n") == 1 and out == ""
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {*files, "full"}


def test_a_write_that_fails_leaves_nothing(tiny_checkpoint, texts, tmp_path, monkeypatch):
    (tmp_path / "texts.txt").write_text("\n".join(texts))

    def full_disk(encoder, directory):
        directory.mkdir()
        (directory / "config.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SentenceEncoder, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space left"):
        command.main([str(tiny_checkpoint("bert")), str(tmp_path / "texts.txt"), "-o", str(tmp_path / "new")])
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


def test_help_does_not_wait_for_torch():
    code = "import sys; from simcse_kit.cli.whiten import main; sys.exit(main(['--help']) or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0
