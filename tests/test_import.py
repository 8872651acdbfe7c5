import subprocess
import sys

import pytest

import simcse_kit


def test_the_package_imports_torch_only_when_it_is_needed():
    code = """
import sys
import simcse_kit
simcse_kit.__version__, simcse_kit.UserError
heavy = {"torch", "transformers", "datasets", "sentence_transformers", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert simcse_kit.SentenceEncoder.__mro__[1].__module__.startswith("torch.")


def test_every_public_name_resolves():
    for name in simcse_kit.__all__:
        assert getattr(simcse_kit, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'SentenceEncoderr'"):
        _ = simcse_kit.SentenceEncoderr
