"""The examples of servers: one answers on this machine as kit predicts; Triton's settings are those of the file."""

import importlib.util
import io
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

import numpy as np
import pytest
import torch
from deploy_fakes import noise
from PIL import Image

import kit
from kit.deploy.weights import torchscript
from kit.pipeline.export import Exported

EXAMPLES = Path(__file__).parents[3] / "examples"
OPENER = build_opener(ProxyHandler({}))  # no proxy for this machine


@pytest.fixture(scope="module")
def server(tiny_weights: Exported) -> Iterator[str]:
    """The address of the example, running."""
    if missing := [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{missing[0]} is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "serve:app", "--port", str(port), "--log-level", "warning"]
    environment = os.environ | {"WEIGHTS": str(tiny_weights.path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=EXAMPLES / "server", env=environment)
    try:
        for _ in range(600):
            try:
                OPENER.open(f"http://127.0.0.1:{port}/openapi.json", timeout=5).close()
                break
            except URLError:
                assert process.poll() is None, "the server has stopped"
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/mask"
    finally:
        process.terminate()
        process.wait(timeout=30)


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("channels", [3, 4])
def test_the_server_answers_as_kit_predicts(server: str, tiny_weights: Exported, channels: int):
    image = noise(70, 91, channels)
    with OPENER.open(Request(server, png(image)), timeout=60) as answer:
        mask = np.array(Image.open(io.BytesIO(answer.read())))
    expected = kit.predict(tiny_weights.path, image, tuning=False) > 0.5
    assert set(np.unique(mask)) == {0, 255}
    assert (mask == expected * 255).mean() > 0.999


def test_what_is_no_image_is_refused(server: str):
    with pytest.raises(HTTPError) as error:
        OPENER.open(Request(server, b"GIF89a, or not"), timeout=60)
    assert error.value.code == 400
    assert b"not an image" in error.value.read()


def test_triton_is_given_what_the_file_takes(tiny_weights: Exported):
    """By Triton's rules: names of places, types and dimensions without the batch; -1 is any size."""
    text = (EXAMPLES / "triton" / "config.pbtxt").read_text()
    (source, target) = re.findall(r'name: "(\w+__0)"\s+data_type: TYPE_(\w+)\s+dims: \[ ([^\]]+) \]', text)
    assert source == ("INPUT__0", "UINT8", "3, -1, -1")
    assert target == ("OUTPUT__0", "FP32", "1, -1, -1")
    batch = torch.zeros(int(re.search(r"max_batch_size: (\d+)", text)[1]), 3, 33, 50, dtype=torch.uint8)
    with torch.inference_mode():
        output = torchscript.load(tiny_weights.path, "cpu")(batch)
    assert (output.dtype, output.shape) == (torch.float32, (len(batch), 1, 33, 50))
