import os
import subprocess
import sys

import pytest

from simcse_kit.cli.common import command_app, run
from simcse_kit.errors import UserError


def app_that(action):
    app = command_app()

    @app.command()
    def command(count: int):
        action()

    return app


def fail(error):
    def action():
        raise error

    return action


@pytest.mark.parametrize(
    ("action", "args", "code", "stderr"),
    [
        (lambda: None, ["3"], 0, ""),
        (fail(UserError("row 3: no text")), ["3"], 2, "error: row 3: no text\n"),
        (fail(KeyboardInterrupt()), ["3"], 130, "interrupted\n"),
        (lambda: None, [], 2, "error: Missing argument"),
        (lambda: None, ["three"], 2, "error: Invalid value for"),
        (lambda: None, ["3", "--cuont"], 2, "error: No such option: --cuont"),
    ],
)
def test_what_ends_a_command_becomes_a_code_and_one_line(action, args, code, stderr, capsys):
    assert run(app_that(action), args) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(stderr) if stderr else err == ""
    assert err.count("\n") == (code != 0)


def test_a_fault_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run(app_that(lambda: 1 / 0), ["3"])


CHATTER = """
import sys, warnings
from simcse_kit.cli.common import command_app, run
app = command_app()
@app.command()
def command():
    from transformers.utils import logging
    logging.get_logger("transformers").warning("a library's advice")
    warnings.warn("a library's deprecation", FutureWarning)
    warnings.warn_explicit("our own", UserWarning, "encoder.py", 1, module="simcse_kit.encoder")
sys.exit(run(app, []))
"""


def test_only_our_own_warnings_are_shown():
    result = subprocess.run([sys.executable, "-c", CHATTER], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == "warning: our own\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])  # the pipe breaks when the command ends, or when it prints
def test_a_reader_that_goes_away_is_no_error_to_report(unbuffered):
    code = """
import sys
from simcse_kit.cli.common import command_app, run
app = command_app()
@app.command()
def command():
    sys.stdin.read()
    print("a line that nobody reads")
sys.exit(run(app, []))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 1


@pytest.mark.parametrize("command", ["eval", "encode"])
def test_help_waits_for_no_heavy_library(command):
    heavy = {"torch", "transformers", "scipy", "numpy", "pyarrow", "datasets", "sentence_transformers"}
    code = f"""
import sys
from simcse_kit.cli.{command} import main
code = main(["--help"])
sys.exit(code or ", ".join({heavy} & sys.modules.keys()) or 0)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stderr == "" and result.returncode == 0
    assert "Usage" in result.stdout
