"""Types, and the half precisions that a processor is slow in."""

import platform
from pathlib import Path

import pytest
import torch

from simcse_kit.dtypes import has_instructions, warn_if_slow
from simcse_kit.encoder import SentenceEncoder

CPU = torch.device("cpu")


@pytest.fixture(params=[True, False])
def supported(request, monkeypatch):
    for name in ("bf16", "fp16"):
        monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", lambda: request.param, raising=False)
    return request.param


def test_only_half_precision_on_a_cpu_may_be_slow(supported):
    assert has_instructions(torch.bfloat16, CPU) == has_instructions(torch.float16, CPU) == supported
    assert has_instructions(torch.float32, CPU) and has_instructions(torch.bfloat16, torch.device("cuda"))


@pytest.mark.skipif(
    platform.machine() != "x86_64" or platform.system() != "Linux", reason="x86 processors, as Linux tells"
)
def test_processors_without_avx512_have_none():
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    if "avx512bw" not in flags and "avx_ne_convert" not in flags:
        assert not has_instructions(torch.bfloat16, CPU)
    if "avx512_bf16" in flags:
        assert has_instructions(torch.bfloat16, CPU)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_slow_choice_is_told(supported, dtype, tiny_checkpoint, recwarn):
    SentenceEncoder.from_pretrained(tiny_checkpoint("bert"), device="cpu", dtype=dtype)
    warn_if_slow(getattr(torch, dtype), CPU)
    said = [str(warning.message) for warning in recwarn if "instructions" in str(warning.message)]
    told = "dtype bfloat16: float32 is many times as fast here: this processor has no instructions for it"
    assert said == ([] if supported or dtype == "float32" else [told, told])
