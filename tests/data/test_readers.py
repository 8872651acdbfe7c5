import csv
import gzip
import hashlib
import json
import lzma
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simcse_kit.data.readers import data_sha256, expand, read_columns
from simcse_kit.data.senteval import data_root
from simcse_kit.errors import UserError

DATA = data_root()
needs_data = pytest.mark.skipif(DATA is None, reason="SIMCSE_KIT_DATA names no data folder")

# what pandas and the like take for a missing value or a number, and what splitlines() takes for a line end
TRAPS = [
    "NA",
    "null",
    "None",
    "nan",
    "N/A",
    "",
    " ",
    "5",
    "true",
    'a "quoted" word',
    "a, b",
    "-",
    "a\u2028b",
    "a\x0bb\x85c",
]


def write_csv(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def write_jsonl(path, header, rows):
    lines = [json.dumps(dict(zip(header, row, strict=True))) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_tsv(path, header, rows):
    path.write_bytes("".join("\t".join(row) + "\r\n" for row in [header, *rows]).encode())


def write_parquet(path, header, rows):
    columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


WRITERS = {
    ".csv": write_csv,
    ".jsonl": write_jsonl,
    ".ndjson": write_jsonl,
    ".tsv": write_tsv,
    ".parquet": write_parquet,
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_cells_come_back_as_they_were_written_in_the_order_asked_for(tmp_path, suffix):
    path = tmp_path / f"data{suffix}"
    WRITERS[suffix](path, ["a", "extra", "b"], [[trap, "x", f"{trap}!"] for trap in TRAPS])
    read = read_columns(path, ["b", "a"])
    assert list(read) == ["b", "a"]
    assert read == {"a": TRAPS, "b": [f"{trap}!" for trap in TRAPS]}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=4))
def test_any_unicode_text_survives(tmp_path, suffix, rows):
    path = tmp_path / f"data{suffix}"
    WRITERS[suffix](path, ["a", "b"], rows)
    assert read_columns(path, ["a", "b"]) == {"a": [a for a, _ in rows], "b": [b for _, b in rows]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b"one\ntwo\n", ["one", "two"], id="plain"),
        pytest.param(b"one\ntwo", ["one", "two"], id="no-final-line-end"),
        pytest.param(b"one\r\ntwo\r\n", ["one", "two"], id="crlf"),
        pytest.param(b"\xef\xbb\xbfone\n\n  \ntwo\n\n", ["one", "two"], id="bom-and-blank-lines"),
        pytest.param(" a\u2028b\x0cc\x85d \n".encode(), [" a\u2028b\x0cc\x85d "], id="no-other-line-ends"),
        pytest.param(b"NA\nnull\n", ["NA", "null"], id="no-missing-values"),
    ],
)
@pytest.mark.parametrize(("suffix", "compress"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)])
def test_text_lines(tmp_path, content, expected, suffix, compress):
    path = tmp_path / f"text.txt{suffix}"
    path.write_bytes(compress(content))
    assert read_columns(path, ["whatever"]) == {"whatever": expected}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_gzip_bom_and_capital_suffix(tmp_path, suffix):
    plain = tmp_path / f"plain{suffix}"
    WRITERS[suffix](plain, ["a"], [["é one"], ["two"]])
    packed = tmp_path / f"PACKED{suffix.upper()}.GZ"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + plain.read_bytes()))
    assert read_columns(packed, ["a"]) == {"a": ["é one", "two"]}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_blank_lines_are_no_rows(tmp_path, suffix):
    path = tmp_path / f"data{suffix}"
    WRITERS[suffix](path, ["a", "b"], [["1", "2"], ["3", "4"]])
    path.write_bytes(path.read_bytes().replace(b"\n", b"\n\r\n"))
    assert read_columns(path, ["a", "b"]) == {"a": ["1", "3"], "b": ["2", "4"]}


def test_tsv_takes_quotation_marks_as_text_and_csv_allows_huge_cells(tmp_path):
    (tmp_path / "a.tsv").write_text('a\tb\n"open\tshut"\n')
    assert read_columns(tmp_path / "a.tsv", ["a", "b"]) == {"a": ['"open'], "b": ['shut"']}
    write_csv(tmp_path / "a.csv", ["a"], [["x" * 200_000]])
    assert len(read_columns(tmp_path / "a.csv", ["a"])["a"][0]) == 200_000


@pytest.mark.parametrize(
    "kind", [pyarrow.large_string(), pyarrow.dictionary(pyarrow.int8(), pyarrow.string())], ids=str
)
def test_other_string_types_of_parquet(tmp_path, kind):
    table = pyarrow.table({"a": pyarrow.array(["x", "y", "x"]).cast(kind)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert read_columns(tmp_path / "a.parquet", ["a"]) == {"a": ["x", "y", "x"]}


def test_several_sources_follow_one_another_and_a_glob_is_sorted(tmp_path, monkeypatch):
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.txt").write_text(f"{name}1\n{name}2\n")
    (tmp_path / "folder.txt").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read_columns(["c.txt", tmp_path / "a.txt"], ["t"])["t"] == ["c1", "c2", "a1", "a2"]
    for pattern in ("*.txt", f"{tmp_path}/[ab].txt", "**/*.txt"):
        assert read_columns(pattern, ["t"])["t"][:4] == ["a1", "a2", "b1", "b2"]
    assert read_columns("*.txt", ["t"], limit=3)["t"] == ["a1", "a2", "b1"]
    (tmp_path / "[ab].txt").write_text("literal\n")  # an existing file wins over what its name matches
    assert read_columns("[ab].txt", ["t"])["t"] == ["literal"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".tsv"])
def test_limit_reads_no_further_than_its_rows(tmp_path, suffix):
    path = tmp_path / f"data{suffix}"
    WRITERS[suffix](path, ["a"], [["one"], ["two"]])
    path.write_bytes(path.read_bytes() + b'"\xff broken {\n')
    assert read_columns([path, tmp_path / "missing.csv"][:1], ["a"], limit=2)["a"] == ["one", "two"]
    with pytest.raises(UserError):
        read_columns(path, ["a"])


def test_labels_may_be_integers(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"t": "x", "label": 0}\n{"t": "y", "label": "neutral"}\n{"t": "z", "label": -1}\n'
    )
    assert read_columns(tmp_path / "a.jsonl", ["t", "label"], labels=["label"])["label"] == ["0", "neutral", "-1"]
    with pytest.raises(UserError, match=r"a\.jsonl, row 1 \(line 1\), column 'label': 0 \(int\)"):
        read_columns(tmp_path / "a.jsonl", ["t", "label"])


# (name, content, columns, what the message must say)
MISTAKES = {
    "missing-file": ("", None, ["a"], ["no file", "no-such.csv"]),
    "empty-txt": ("e.txt", b"", ["a"], ["e.txt", "no rows"]),
    "blank-txt": ("e.txt", b"\n \n", ["a"], ["e.txt", "no rows"]),
    "empty-csv": ("e.csv", b"", ["a"], ["e.csv is empty"]),
    "header-only": ("e.csv", b"a,b\n", ["a"], ["e.csv", "no rows"]),
    "empty-jsonl": ("e.jsonl", b"\n", ["a"], ["e.jsonl", "no rows"]),
    "txt-columns": ("e.txt", b"x\n", ["a", "b"], ["e.txt", "one column", "a, b"]),
    "csv-column": ("e.csv", b"sent0,sent1\nx,y\n", ["sent_0"], ["e.csv", "did you mean 'sent0'", "sent0, sent1"]),
    "tsv-column": ("e.tsv", b"sent0\tsent1\nx\ty\n", ["zzz"], ["e.tsv", "'zzz'", "sent0, sent1"]),
    "jsonl-column": ("e.jsonl", b'{"text": "x"}\n', ["Text"], ["e.jsonl:", "'Text'", "did you mean 'text'"]),
    "jsonl-later-column": ("e.jsonl", b'{"a": "x"}\n\n{"b": "x"}\n', ["a"], ["e.jsonl, row 2 (line 3)", "'a'"]),
    "short-row": ("e.csv", b'a,b\n"x\ny",z\nx\n', ["a"], ["e.csv, row 2 (line 4)", "'b'"]),
    "long-row": ("e.csv", b"a,b\nx,y,z\n", ["a"], ["e.csv, row 1 (line 2)", "3 cells"]),
    "json-null": ("e.jsonl", b'{"a": "x"}\n{"a": null}\n', ["a"], ["e.jsonl, row 2 (line 2)", "'a'", "null"]),
    "json-number": ("e.jsonl", b'{"a": 5}\n', ["a"], ["e.jsonl, row 1 (line 1)", "'a'", "5"]),
    "json-list": ("e.jsonl", b'{"a": ["x"]}\n', ["a"], ["e.jsonl, row 1 (line 1)", "'a'", "list"]),
    "json-surrogate": ("e.jsonl", b'{"a": "\\ud83d"}\n', ["a"], ["e.jsonl, row 1 (line 1)", "'a'", "surrogate"]),
    "json-syntax": ("e.jsonl", b'{"a": "x"}\n{"a": "x",}\n', ["a"], ["e.jsonl, line 2", "JSON"]),
    "json-no-object": ("e.jsonl", b'["x"]\n', ["a"], ["e.jsonl, line 1", "object"]),
    "csv-quote": ("e.csv", b'a,b\nx,y\nx,"y\nz,z\n', ["a"], ["e.csv, line 3", "quotation"]),
    "bytes-txt": ("e.txt", b"fine\ncaf\xe9\n", ["a"], ["e.txt, line 2", "0xe9", "UTF-8"]),
    "bytes-csv": ("e.csv", b"a\nfine\ncaf\xe9\n", ["a"], ["e.csv, line 3", "UTF-8"]),
    "bytes-tsv": ("e.tsv", b"a\nfine\ncaf\xe9\n", ["a"], ["e.tsv, line 3", "UTF-8"]),
    "bytes-jsonl": ("e.jsonl", b'{"a": "caf\xe9"}\n', ["a"], ["e.jsonl, line 1", "UTF-8"]),
    "bytes-gzip": ("e.txt.gz", gzip.compress(b"fine\nfine\ncaf\xe9\n"), ["a"], ["e.txt.gz, line 3", "UTF-8"]),
    "no-gzip": ("e.txt.gz", b"plain\n", ["a"], ["e.txt.gz", "gzip"]),
    "cut-gzip": ("e.txt.gz", gzip.compress(b"fine\n" * 99)[:-12], ["a"], ["e.txt.gz", "gzip"]),
    "no-xz": ("e.txt.xz", b"plain\n", ["a"], ["e.txt.xz", "xz"]),
    "cut-xz": ("e.txt.xz", lzma.compress(b"fine\n" * 99)[:-12], ["a"], ["e.txt.xz", "xz"]),
    "no-parquet": ("e.parquet", b"plain text, no parquet", ["a"], ["e.parquet", "parquet"]),
    "suffix": ("e.json", b"{}", ["a"], ["e.json", ".jsonl", ".parquet"]),
    "gzipped-parquet": ("e.parquet.gz", b"", ["a"], ["e.parquet.gz", ".parquet"]),
    "column-twice": ("e.csv", b"a\nx\n", ["a", "a"], ["named twice", "a"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_that_says_where(tmp_path, name):
    file, content, columns, said = MISTAKES[name]
    path = tmp_path / (file or "no-such.csv")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_columns(path, columns)
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in said if part not in message] == []


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"a": ["x", None]}, ["row 2", "'a'", "null"]),
        ({"a": [1, 2]}, ["row 1", "'a'", "1 (int)"]),
        ({"a": [b"x"]}, ["row 1", "'a'", "bytes"]),
        ({"text": ["x"]}, ["'a'", "its columns are: text"]),
        ({"a": pyarrow.array([], pyarrow.string())}, ["no rows"]),
    ],
)
def test_mistakes_in_parquet(tmp_path, table, said):
    path = tmp_path / "e.parquet"
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    with pytest.raises(UserError) as caught:
        read_columns(path, ["a"])
    assert [part for part in ["e.parquet", *said] if part not in str(caught.value)] == []


def test_a_cut_off_parquet_file_is_one_line(tmp_path):
    path = tmp_path / "e.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"a": [str(i) for i in range(1000)]}), path)
    content = bytearray(path.read_bytes())
    path.write_bytes(content[:-20])
    with pytest.raises(UserError, match=r"e\.parquet is no complete parquet file: [^\n]+$"):
        read_columns(path, ["a"])
    content[100:300] = bytes(200)  # the footer is whole, a page is not
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"e\.parquet[^\n]+$"):
        read_columns(path, ["a"])


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("no/*.txt", "no file matches no/"),
        (".", "is a directory"),
        ([], "list of data files is empty"),
        ("hf://owner/name/file.csv", "hf://datasets/owner/name@revision/file"),
        ("hub:name", "hub:owner/name@revision/configuration:split"),
    ],
)
def test_mistaken_sources(tmp_path, monkeypatch, source, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        read_columns(source, ["a"])
    assert said in str(caught.value)


def test_hashes_are_those_of_the_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n")
    hashes = data_sha256(str(tmp_path / "*.txt"))
    assert hashes == {str(tmp_path / f"{n}.txt"): hashlib.sha256(f"{n}\n".encode()).hexdigest() for n in ("a", "b")}


def test_scenes_give_as_many_columns_as_asked_for():
    from simcse_kit.data.scenes import scene_sentences, scene_triplets

    assert read_columns("scenes", ["x"], limit=20)["x"] == scene_sentences("train", limit=20)
    triplets = scene_triplets("train", limit=20)
    for columns in (["a", "p"], ["a", "p", "n"]):
        read = read_columns("scenes", columns, limit=20)
        assert list(zip(*read.values(), strict=True)) == [triplet[: len(columns)] for triplet in triplets]
    with pytest.raises(UserError, match="scenes has 1, 2 or 3 columns"):
        read_columns("scenes", ["a", "b", "c", "d"])


def test_the_scenes_hash_follows_the_files_that_generate_them(tmp_path, monkeypatch):
    from simcse_kit.data import scenes

    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "__pycache__").mkdir()
    before = data_sha256("scenes")
    monkeypatch.setattr(scenes, "__file__", str(tmp_path / "__init__.py"))
    changed = data_sha256("scenes")
    assert before.keys() == changed.keys() == {"scenes"}
    assert before != changed == {"scenes": hashlib.sha256(b"").hexdigest()}


@needs_data
@pytest.mark.reference
@pytest.mark.parametrize(
    ("file", "columns", "rows"),
    [
        ("nli/nli_triplets.csv", ["sent0", "sent1", "hard_neg"], 29_722),
        ("nli/nli.jsonl", ["premise", "hypothesis", "label"], 116_179),
        ("nli/nli_extra.jsonl.gz", ["premise", "hypothesis", "label"], 32_216),
        ("text/wiki1m_head.txt", ["text"], 11_914),
        ("text/sts_unlabeled_consert.txt.gz", ["text"], 89_192),
    ],
)
def test_row_counts_of_real_files(no_network, file, columns, rows):
    assert {len(texts) for texts in read_columns(DATA / file, columns).values()} == {rows}


def test_no_local_file_opens_a_connection(no_network, tmp_path):
    for suffix, write in WRITERS.items():
        write(tmp_path / f"data{suffix}", ["a"], [["x"]])
    (tmp_path / "data.txt").write_text("x\n")
    for path in sorted(Path(tmp_path).iterdir()):
        assert read_columns(path, ["a"]) == {"a": ["x"]}
    assert len(data_sha256(str(tmp_path / "*"))) == len(WRITERS) + 1


def test_a_pattern_that_python_does_not_know_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"all folders below are \*\*/\*\.txt"):
        expand(str(tmp_path / "**.txt"))
