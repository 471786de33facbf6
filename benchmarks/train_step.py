"""Seconds per training crop: the kit's lite0 against a plain loop, in turn, in one process.

    python benchmarks/train_step.py

A: segmentation_models_pytorch's U-Net with the same encoder, fp32, plain memory format, torch's AdamW, 256 x 256 px
   crops at 0.15 m (tiles reduced to half beforehand), as a straight loop would have it.
B: the recipe lite0 as `kit run` trains it: the same ground, 512 x 512 px of a z19 tile, reduced inside.

Both see random pixels, from memory, 8 crops a step; augmentation is left out on both sides.
"""

import statistics
import time
from functools import partial
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from fastai.vision import all as fv

from kit.models.losses import CrossEntropy
from kit.paths import Paths
from kit.system.devices import has_fast_bf16, keep_freed_memory
from kit.training.fit import rebuild
from kit.training.recipe import load_recipe

BATCH, ROUNDS, STEPS = 8, 5, 3


def timed(step, steps: int = STEPS) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - start) / steps / BATCH


def plain_step():
    model = smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None, classes=2).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    loss_func = torch.nn.CrossEntropyLoss(ignore_index=255)
    images, masks = torch.rand(BATCH, 3, 256, 256), torch.randint(0, 2, (BATCH, 256, 256))

    def step() -> None:
        loss_func(model(images), masks).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def kit_step():
    learn = rebuild(load_recipe("lite0", Paths(Path())))
    model = learn.model.train().to(memory_format=torch.channels_last)
    optimizer = partial(fv.OptimWrapper, opt=torch.optim.AdamW, fused=True)(list(model.parameters()), lr=1e-3)
    loss_func = CrossEntropy()
    images = torch.randint(0, 256, (BATCH, 3, 512, 512), dtype=torch.uint8)
    masks = torch.randint(0, 2, (BATCH, 512, 512))
    bf16 = has_fast_bf16(torch.device("cpu"))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(images.contiguous(memory_format=torch.channels_last))
        loss_func(logits.float(), masks).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    plain, kit = plain_step(), kit_step()
    rows = {"A plain": [], "B kit, malloc as it is": [], "B kit": []}
    for name, step in (("A plain", plain), ("B kit, malloc as it is", kit)):
        timed(step, 2)
        rows[name] = [timed(step) for _ in range(ROUNDS)]
    keep_freed_memory()  # from here on for both: A again would gain from it too, so B is compared with the first A
    timed(kit, 2)
    rows["B kit"] = [timed(kit) for _ in range(ROUNDS)]
    base = statistics.median(rows["A plain"])
    for name, seconds in rows.items():
        middle = statistics.median(seconds)
        print(f"{name:24} {middle:.4f} s per crop ({min(seconds):.4f} to {max(seconds):.4f}), {base / middle:.2f} x A")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, bf16 {has_fast_bf16(torch.device('cpu'))}")


if __name__ == "__main__":
    main()
