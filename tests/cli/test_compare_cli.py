import json

import pytest

from simcse_kit.cli import compare as command
from simcse_kit.cli import eval as evaluate

PAIRS = "sentence1,sentence2,score\nA man sings.,Someone sings.,4.5\nA dog runs.,It rains.,0.5\nTwo,Three,2\n"


@pytest.fixture
def measured(tmp_path):
    """Result files of the packaged model by two protocols, and by the first once more."""
    pairs = tmp_path / "own.csv"
    pairs.write_text(PAIRS)
    files = {name: tmp_path / f"{name}.json" for name in ("spearman", "pearson", "again")}
    for name, path in files.items():
        metric = "pearson" if name == "pearson" else "spearman"
        args = ["all-MiniLM-L6-v2", "--data", str(pairs), "--metric", metric, "--json", str(path)]
        assert evaluate.main(args) == 0
    return files


def test_result_files_side_by_side_or_refused(measured, tmp_path, capsys):
    capsys.readouterr()
    assert command.main([str(measured["spearman"]), str(measured["again"])]) == 0
    value = json.loads(measured["spearman"].read_text())["results"][0]["value"]
    out, err = capsys.readouterr()
    assert err == "" and out.count("all-MiniLM-L6-v2 (mean)") == 2 and out.count(f"{value:.2f}") == 2

    assert command.main([str(measured["spearman"]), str(measured["pearson"])]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert "own: figures of different protocol are not compared: metric spearman against pearson" in err

    assert command.main([str(tmp_path / "none.json")]) == 2
    assert "none.json: cannot be read" in capsys.readouterr().err
