"""The real pynvml over no driver, and over a library of ours with the real ABI."""

import ctypes.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FAKE = r"""
#include <string.h>
typedef int nvmlReturn_t;
typedef struct device *nvmlDevice_t;
nvmlReturn_t nvmlInitWithFlags(unsigned int flags) { return INIT; }
nvmlReturn_t nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(nvmlReturn_t code) { return code == 9 ? "Driver Not Loaded" : "Unknown Error"; }
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return 0; }
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int i, nvmlDevice_t *d)
{ *d = (nvmlDevice_t)(long)(i + 1); return 0; }
nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t d, char *name, unsigned int n)
{ strncpy(name, "Test GPU", n); return 0; }
nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t d, char *uuid, unsigned int n)
{ strncpy(uuid, (long)d == 1 ? "GPU-one" : "GPU-two", n); return UUID; }
"""
ASK = "from tailspan.collect.nvml import gpus; print(gpus())"


def ask(folder: Path, init: int = 0, uuid: int = 0) -> str:
    """What gpus() says in a process whose libnvidia-ml.so.1 is the one we built."""
    source = folder / "nvml.c"
    source.write_text(FAKE)
    library = folder / "libnvidia-ml.so.1"
    command = [
        shutil.which("clang") or "clang-14",
        "-shared",
        "-fPIC",
        f"-DINIT={init}",
        f"-DUUID={uuid}",
        "-w",
        "-o",
        library,
        source,
    ]
    subprocess.run(command, check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", ASK], env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.skipif(ctypes.util.find_library("nvidia-ml") is not None, reason="this host has the driver")
def test_without_a_driver_there_is_a_reason_and_no_error(tmp_path: Path) -> None:
    said = subprocess.run([sys.executable, "-c", ASK], check=True, capture_output=True, text=True).stdout

    assert "names=()" in said
    assert "Library Not Found" in said


def test_every_gpu_is_named_with_its_uuid(tmp_path: Path) -> None:
    assert ask(tmp_path) == "Gpus(names=('Test GPU (GPU-one)', 'Test GPU (GPU-two)'), why_none='')"


def test_a_driver_that_is_not_loaded_is_said(tmp_path: Path) -> None:
    assert ask(tmp_path, init=9) == "Gpus(names=(), why_none='Driver Not Loaded')"


def test_a_device_that_fails_midway_is_a_reason_too(tmp_path: Path) -> None:
    said = ask(tmp_path, uuid=999)

    assert "names=()" in said
    assert "Unknown Error" in said
