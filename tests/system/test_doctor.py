"""What `kit doctor` advises."""

import platform
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from web import Web

from kit.system import doctor


def found(check: str, tmp_path: Path) -> doctor.MachineCheck:
    return next(each for each in doctor.examine(tmp_path) if each.check == check)


def test_a_hub_that_answers(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://{web.host}/")
    assert found("hub", tmp_path) == doctor.MachineCheck("hub", f"http://{web.host}/ is reachable")


def test_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    hub = found("hub", tmp_path)
    assert hub.result == "http://127.0.0.1:9 is not reachable"
    assert "--encoder-weights" in hub.advice
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert found("hub", tmp_path).result == "switched off by HF_HUB_OFFLINE"


def test_a_driver_that_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "NVIDIA", tmp_path)
    gpu = found("gpu", tmp_path)
    assert gpu.result == "an NVIDIA driver, but torch finds no GPU"
    assert gpu.advice.startswith("update the driver")


def test_cuda_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(doctor, "NVIDIA", tmp_path / "none")
    assert "CPU-only torch" in found("torch", tmp_path).advice
    assert found("gpu", tmp_path).result == "none"


def test_a_python_that_was_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10, 1))
    assert found("python", tmp_path).advice.startswith("kit is tried with 3.11 to")


def test_little_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=2e9))
    disk = found("disk", tmp_path / "not" / "there")
    assert disk.result == f"2.0 GB free in {tmp_path}"
    assert "--root" in disk.advice


def test_a_broken_library_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken() -> tuple[str, str]:
        raise OSError("libgdal.so.36: cannot open shared object file")

    monkeypatch.setattr(doctor, "_gdal", broken)
    gdal = found("gdal", tmp_path)
    assert gdal.result == "failed: libgdal.so.36: cannot open shared object file"
    assert found("python", tmp_path).result.startswith(platform.python_version())
