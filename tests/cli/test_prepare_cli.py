import subprocess
import sys

from simcse_kit.cli import prepare as command


def test_tokens_are_written_and_said(tmp_path, capfd):
    text, out = tmp_path / "text.txt", tmp_path / "tokens"
    text.write_text("\n\n".join(f"the cat number {number}\nsleeps" for number in range(10)))
    assert command.main([str(text), "-o", str(out), "--vocab-size", "100", "--held-out", "0.2"]) == 0
    said, errors = capfd.readouterr()
    assert said.startswith(f"{out}: ") and "of 8 documents to train on" in said and "of 2 held out" in said
    assert errors == ""


def test_a_mistake_is_one_line(tmp_path, capfd):
    assert command.main([str(tmp_path / "none.txt"), "-o", str(tmp_path / "tokens")]) == 2
    assert "there is no file" in capfd.readouterr().err
    (tmp_path / "empty.txt").write_text("\n\n")
    assert command.main([str(tmp_path / "empty.txt"), "-o", str(tmp_path / "tokens")]) == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]


def test_help_does_not_wait_for_torch():
    code = "import sys; from simcse_kit.cli import prepare; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
