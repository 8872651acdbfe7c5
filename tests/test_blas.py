"""Products by numpy's BLAS: what comes out, on which threads, and settings that are left as found."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from simcse_kit import blas

needs_gnu = pytest.mark.skipif(not blas.Team.is_available(), reason="needs PyTorch with GNU's OpenMP")
needs_openblas = pytest.mark.skipif(
    all(each["internal_api"] != "openblas" for each in threadpool_info()), reason="needs numpy with OpenBLAS"
)


def openblas_threads():
    return [each["num_threads"] for each in threadpool_info() if each["internal_api"] == "openblas"]


@needs_gnu
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("layout", ["as it is", "left turned", "right turned", "no rows", "fewer rows than threads"])
def test_products_are_float64s(layout, threads, monkeypatch):
    monkeypatch.setattr(blas, "_FEWEST", 0)
    rows = {"no rows": 0, "fewer rows than threads": 2}.get(layout, 101)
    left, right = torch.randn(rows, 37, requires_grad=True), torch.randn(37, 53)
    if layout == "left turned":
        left = torch.randn(37, 101).t()
    if layout == "right turned":
        right = torch.randn(53, 37).t()
    with blas.Team(threads) as team:
        found = team.multiply(left, right)
        assert torch.equal(found, team.multiply(left, right))
    assert not found.requires_grad and found.shape == (rows, 53)
    assert torch.allclose(found.double(), left.double() @ right.double(), atol=1e-4)


@needs_gnu
def test_each_thread_has_its_share_and_small_products_are_left_to_pytorch(monkeypatch):
    seen, multiply = [], np.matmul

    def watched(left, right, out):
        seen.append((threading.get_ident(), len(left)))
        return multiply(left, right, out=out)

    monkeypatch.setattr(np, "matmul", watched)
    left, right = torch.randn(1_000, 64), torch.randn(64, 64)
    with blas.Team(2) as team:
        team.multiply(left, right)
        assert not seen
        monkeypatch.setattr(blas, "_FEWEST", 1_000 * 64 * 64 // 2)
        team.multiply(left, right)
    assert [rows for _, rows in seen] == [500, 500] and len({thread for thread, _ in seen}) == 2


@needs_openblas
def test_openblas_multiplies_on_its_callers_thread_and_has_its_own_again_behind_the_last_context():
    with threadpool_limits(2, user_api="blas"):
        with blas.on_callers_thread():
            with blas.on_callers_thread():
                assert set(openblas_threads()) == {1}
            assert set(openblas_threads()) == {1}
        assert set(openblas_threads()) == {2}
        with pytest.raises(KeyError), blas.on_callers_thread():
            raise KeyError
        assert set(openblas_threads()) == {2}


def in_new_thread(function):
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function).result()


def test_torch_keeps_to_a_thread_and_no_other_is_told():
    def keep():
        blas.keep_torch_to_this_thread(3)
        return torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert in_new_thread(keep) == 1
        assert torch.get_num_threads() == in_new_thread(torch.get_num_threads) == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("quickest", "threads", "cores", "expected"),
    [(True, 2, 2, 2), (True, 1, 4, 1), (True, 2, 1, 0), (True, 9, 16, 0), (False, 2, 2, 0)],
)
def test_as_many_threads_as_torch_has_multiply_if_they_may_spread(quickest, threads, cores, expected, monkeypatch):
    monkeypatch.setattr(blas, "is_quickest", lambda: quickest)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(blas.os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    assert blas.usable_threads() == expected
    assert in_new_thread(blas.usable_threads) == 0


@pytest.mark.parametrize(
    ("processor", "capability", "library", "layer", "expected"),
    [
        ("AuthenticAMD", "AVX2", "scipy-openblas", "pthreads", True),
        ("AuthenticAMD", "AVX512", "scipy-openblas", "pthreads", False),
        ("GenuineIntel", "AVX2", "scipy-openblas", "pthreads", False),
        ("AuthenticAMD", "AVX2", "mkl", "pthreads", False),
        ("AuthenticAMD", "AVX2", "scipy-openblas", "openmp", False),
        (None, "AVX2", "scipy-openblas", "pthreads", False),
    ],
)
def test_it_is_quickest_where_that_was_measured(processor, capability, library, layer, expected, tmp_path, monkeypatch):
    described = tmp_path / "cpuinfo"
    if processor is not None:
        described.write_text(f"vendor_id : {processor}\n", encoding="utf-8")
    monkeypatch.setattr(blas, "Path", lambda name: described)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(np, "show_config", lambda mode: {"Build Dependencies": {"blas": {"name": library}}})
    loaded = SimpleNamespace(info=lambda: [{"threading_layer": layer}])
    monkeypatch.setattr(blas, "ThreadpoolController", lambda: SimpleNamespace(select=lambda internal_api: loaded))
    blas.is_quickest.cache_clear()
    try:
        assert blas.is_quickest() == expected
    finally:
        blas.is_quickest.cache_clear()


@pytest.mark.parametrize(
    ("processor", "built_with_mkl", "expected"),
    [("GenuineIntel", True, True), ("GenuineIntel", False, False), ("AuthenticAMD", True, False), (None, True, False)],
)
def test_mkl_is_quickest_on_its_makers_processors(processor, built_with_mkl, expected, tmp_path, monkeypatch):
    described = tmp_path / "cpuinfo"
    if processor is not None:
        described.write_text(f"vendor_id : {processor}\n", encoding="utf-8")
    monkeypatch.setattr(blas, "Path", lambda name: described)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: built_with_mkl)
    blas.mkl_is_quickest.cache_clear()
    try:
        assert blas.mkl_is_quickest() == expected
    finally:
        blas.mkl_is_quickest.cache_clear()
