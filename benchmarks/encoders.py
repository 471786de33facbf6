"""What each recipe's network costs beside segmentation_models_pytorch's U-Net of the same encoder.

    python benchmarks/encoders.py [RECIPE...]          prints a table, writes benchmarks/encoders.csv

Each side runs in a process of its own, one after the other, encoder by encoder: random weights, random pixels, crops of
512 x 512 px, 2 a step, fp32 where the CPU has no bf16.

kit: the recipe's network as `kit run` trains it: channels_last, malloc that keeps freed blocks, one fused AdamW step,
     normalisation inside. Recipes that reduce look at the same ground through fewer pixels.
smp: a plain loop: plain memory format, torch's AdamW, pixels normalised beforehand.

Seconds are medians of STEPS after one to warm up; memory is the process's peak, everything imported included.
"""

import csv
import json
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch

CROP_PX, BATCH, STEPS = 512, 2, 3
SMP = {
    "densenet161": "densenet161", "dpn92": "dpn92", "inception_v4": "inceptionv4", "senet154": "senet154",
    "inception_resnet_v2": "inceptionresnetv2", "seresnext50_32x4d": "se_resnext50_32x4d",
    "tf_efficientnet_b1": "efficientnet-b1", "tf_efficientnet_b3": "efficientnet-b3",
    "tf_efficientnet_b4": "efficientnet-b4",
}  # fmt: skip
TABLE = Path(__file__).with_suffix(".csv")


def median_seconds(step) -> float:
    step()
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) / BATCH


def kit_side(recipe: str):
    from fastai.vision import all as fv

    from kit.paths import Paths
    from kit.system.devices import autocast_dtype, keep_freed_memory
    from kit.training.fit import rebuild
    from kit.training.recipe import load_recipe

    keep_freed_memory()
    model = rebuild(load_recipe(recipe, Paths(Path()))).model.to(memory_format=torch.channels_last)
    optimizer = partial(fv.OptimWrapper, opt=torch.optim.AdamW, fused=True)(list(model.parameters()), lr=1e-4)
    images = torch.randint(0, 256, (BATCH, 3, CROP_PX, CROP_PX), dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    dtype = autocast_dtype(torch.device("cpu"))
    return model, optimizer, images, torch.autocast("cpu", dtype, enabled=dtype != torch.float32)


def smp_side(encoder: str):
    import segmentation_models_pytorch as smp

    timm_name = encoder.split(".")[0]
    model = smp.Unet(SMP.get(timm_name, f"tu-{timm_name}"), encoder_weights=None, classes=2)
    images = torch.rand(BATCH, 3, CROP_PX, CROP_PX)
    return model, torch.optim.AdamW(model.parameters(), 1e-4), images, torch.autocast("cpu", enabled=False)


def measure(model, optimizer, images, autocast) -> dict[str, float]:
    masks = torch.randint(0, 2, (BATCH, CROP_PX, CROP_PX))
    loss_func = torch.nn.CrossEntropyLoss()

    def train() -> None:
        with autocast:
            logits = model(images)
        loss_func(logits.float(), masks).backward()
        optimizer.step()
        optimizer.zero_grad()

    def infer() -> None:
        with torch.inference_mode(), autocast:
            model(images)

    # inference first: its peak is that of a process that never trained
    model.eval()
    infer_s, infer_gb = median_seconds(infer), peak_gb()
    model.train()
    return {"train_s": median_seconds(train), "infer_s": infer_s, "train_gb": peak_gb(), "infer_gb": infer_gb}


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def in_own_process(side: str, name: str) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", __file__, "--side", side, name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from kit.paths import Paths
    from kit.pipeline.cost import cost_of
    from kit.training.recipe import known_recipes, load_recipe

    chosen = sys.argv[1:] or sorted(set(known_recipes(Paths(Path()))) - {"quickstart"})  # which is lite0 again
    columns = ("params_m", "gflop_512", "train_s", "infer_s", "train_gb", "infer_gb")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; a cell holds kit / smp (ratio smp / kit)")
    print("| recipe | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    rows = []
    for recipe in chosen:
        cost = cost_of(load_recipe(recipe, Paths(Path())))
        with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.inference_mode():
            plain = smp_side(cost.encoder)[0].eval()
            plain(torch.zeros(1, 3, CROP_PX, CROP_PX))
        params_m = sum(p.numel() for p in plain.parameters()) / 1e6
        kit = {"params_m": cost.params_m, "gflop_512": cost.gflop_512, **in_own_process("kit", recipe)}
        smp = {"params_m": params_m, "gflop_512": counter.get_total_flops() / 1e9}
        smp |= in_own_process("smp", cost.encoder)
        cells = [f"{kit[c]:.3g} / {smp[c]:.3g} ({smp[c] / kit[c]:.2f})" for c in columns]
        print(f"| {recipe} | " + " | ".join(cells) + " |", flush=True)
        rows += [{"recipe": recipe, "side": side, **{c: round(found[c], 4) for c in columns}}
                 for side, found in (("kit", kit), ("smp", smp))]  # fmt: skip
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["recipe", "side", *columns], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        side, name = sys.argv[2:]
        print(json.dumps(measure(*(kit_side if side == "kit" else smp_side)(name))))
    else:
        main()
