"""NVTX ranges: off by default, in their own domain, around what a call does."""

import contextlib

import pytest
import torch

import pndm_fast as pf


@pytest.fixture
def ranges(monkeypatch):
    import nvtx

    seen = []

    @contextlib.contextmanager
    def annotate(message, domain):
        assert domain == "pndm_fast"
        seen.append(message)
        yield

    monkeypatch.setattr(nvtx, "annotate", annotate)
    return seen


def test_ranges_are_off_until_asked_for(ranges):
    sampler = pf.Sampler(lambda x, t: x * 0.5, pf.make_plan("ddim", steps=3, spacing="trailing"), shape=(1, 8))
    wanted = sampler()
    assert ranges == []
    with pf.nvtx_ranges(), pf.nvtx_ranges():
        assert torch.equal(sampler(), wanted)
    assert ranges == ["network", "row"] * 3 + ["finish"]
    sampler()
    assert len(ranges) == 7


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nvtx", None)
    with pytest.raises(ImportError, match=r"needs nvtx: pip install 'pndm_fast\[profile\]'"), pf.nvtx_ranges():
        pass
