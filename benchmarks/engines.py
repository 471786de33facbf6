"""Speed of one core of a weights file: as shipped, as kit tunes it to the machine, and as OpenVINO computes it.

    pip install -e .[int8] && python benchmarks/engines.py [RECIPE...]        prints a table

Each recipe's network (by default the seed's five encoders) gets random weights and is frozen as `kit export` does. The
sides run in one process, in turn, on one image of 512 x 512 px, one view; a number is the median of ROUNDS after
a first for warming up. OpenVINO gets the same frozen graph, the same number of threads, and the precision that kit's
tuning chose among.

shipped: the frozen file, called as any program calls it.
tuned:   what `kit.deploy.engine.tuning.choose` found within its 20 seconds.
int8:    OpenVINO, whole numbers of 8 bits. Random weights serve for the time alone: whether the masks hold is measured
         on trained ones, by `kit submit --engine openvino-int8`.
share:   OpenVINO's seconds over the tuned ones: 1 is as fast, below 0.8 `kit submit --engine openvino` is worth it.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from kit.deploy.engine import openvino
from kit.deploy.engine.backends import NetworkSetting, int8_path, network
from kit.deploy.engine.tuning import SECONDS_PER_NETWORK, choose
from kit.deploy.proof import images
from kit.deploy.weights import torchscript
from kit.deploy.weights.card import Member
from kit.deploy.weights.load import load_weights
from kit.paths import Paths
from kit.pipeline.export import ExportRequest, export_ensemble
from kit.system.devices import keep_freed_memory
from kit.training.fit import rebuild
from kit.training.recipe import load_recipe

SEED = ("efficientnet_b4", "seresnext50", "densenet161", "inception_v4", "senet154")
SIDE_PX, ROUNDS = 512, 5


def main() -> None:
    keep_freed_memory()  # as `kit submit` does: for all sides, and OpenVINO has memory of its own
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    columns = ("recipe", "shipped s", "tuned s", "OpenVINO s", "int8 s", "share", "setting", "chosen in s")
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for recipe in sys.argv[1:] or SEED:
        print(row(recipe), flush=True)


def row(recipe: str) -> str:
    """Returns a recipe's row of the table."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        os.environ["KIT_CACHE"] = folder
        model = rebuild(load_recipe(recipe, Paths(Path()))).model
        member = Member(recipe, 0, 0, "0" * 64, None)
        exported = export_ensemble(
            Path(folder), [model], [member], ExportRequest(recipe, recipe, "flips", None, 0.1, [], images.SMALL_CASES)
        )
        del model
        weights = load_weights(exported.path)
        image = torch.randint(0, 256, (1, 3, SIDE_PX, SIDE_PX), dtype=torch.uint8)
        start = time.perf_counter()
        setting = choose(weights, 0, [image], "torch")
        chosen_s = time.perf_counter() - start
        assert chosen_s < 1.5 * SECONDS_PER_NETWORK, chosen_s
        openvino.quantise(torchscript.core(weights.module, 0), [image.float()] * 2, int8_path(weights.sha256, 0))
        one_view = NetworkSetting(setting.layout, setting.dtype)
        sides = [
            weights.module.core_0,
            network(weights, 0, one_view, "torch"),
            network(weights, 0, NetworkSetting(dtype=setting.dtype), "openvino"),
            network(weights, 0, NetworkSetting(dtype="int8"), "openvino-int8"),
        ]
        shipped_s, tuned_s, openvino_s, int8_s = seconds(sides, image.float())
    times = f"{shipped_s:.3f} | {tuned_s:.3f} | {openvino_s:.3f} | {int8_s:.3f} | {openvino_s / tuned_s:.2f}"
    return f"| {recipe} | {times} | {setting} | {chosen_s:.1f} |"


def seconds(sides, x: torch.Tensor) -> list[float]:
    """Returns the median seconds of each side; they take turns."""
    outputs = [[] for _ in sides]
    for number in range(ROUNDS + 2):
        for times, side in zip(outputs, sides, strict=True):
            start = time.perf_counter()
            side(x)
            if number >= 2:  # TorchScript's first two runs are its slowest
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in outputs]


if __name__ == "__main__":
    main()
