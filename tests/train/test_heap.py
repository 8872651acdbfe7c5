"""Memory that is kept between steps and given back at the end, or between chunks."""

import ctypes
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from simcse_kit.train.heap import give_back, kept_memory

CPU = torch.device("cpu")

# In a process of its own: where earlier tests have left a hole of that size in the heap, a block goes there, and stays.
KEPT_AND_GIVEN_BACK = """
import resource
import subprocess
import sys
from pathlib import Path
import torch
from simcse_kit.train.heap import kept_memory

SIZE, CPU = 100 * 2**20, torch.device("cpu")

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

def make_and_free():
    torch.empty(SIZE, dtype=torch.uint8).fill_(1)

make_and_free()
before = resident()
with kept_memory(CPU, None):
    make_and_free()
    assert resident() - before > 0.9 * SIZE, "not kept"
assert resident() - before < 0.1 * SIZE, "not given back"
for others in ((CPU, 64), (torch.device("cuda"), None)):
    with kept_memory(*others):
        make_and_free()
        assert resident() - before < 0.1 * SIZE, f"kept for {others}"
"""


def resident():
    """Pages of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1])


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_freed_memory_is_kept_and_given_back_at_the_end():
    subprocess.run([sys.executable, "-c", KEPT_AND_GIVEN_BACK], check=True)


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with kept_memory(CPU, None):
        pass


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_memory_between_blocks_in_use_is_given_back():
    """Blocks too small to be a mapping of their own, every other one of them freed."""
    blocks = [torch.ones(8_000, dtype=torch.float64) for _ in range(1_600)]
    full = resident()
    del blocks[::2]
    give_back(CPU)
    assert full - resident() > 0.4 * 100 * 2**20 / resource.getpagesize()
    give_back(torch.device("cuda"))
