"""The benchmark for GPUs: written here, where there is none, so its every line is run on the CPU."""

import json

import pytest
import torch

from benchmarks import gpu

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main("nano") == json.loads(capsys.readouterr().out) == {"skipped": gpu.NO_DEVICE}


@pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])])
def test_shares_of_what_the_device_can_do(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "WARMUP", 1)
    monkeypatch.setattr(gpu, "NEW_TOKENS", 4)
    monkeypatch.setattr(gpu, "ANSWERS", (1, 2))
    monkeypatch.setattr(gpu.starter, "TOKENIZERS", gpu.starter.TOKENIZERS / "none")  # unfitted: text alone, of bytes
    found = gpu.main("nano", place=place, tokens=256, steps=2)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found
    training, *decoding, one, several = found["results"]
    assert 0 < training["share_of_peak"] < 1 and training["tokens_per_s"] > 0 and training["rows"] == "long texts"
    assert [it["answers"] for it in decoding] == list(gpu.ANSWERS)
    assert all(0 < it["share_of_bandwidth"] < 1 for it in decoding)
    assert [it["pictures"] for it in (one, several)] == list(gpu.ANSWERS) and one["ratio"] > 0
