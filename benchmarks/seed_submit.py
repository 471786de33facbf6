"""The seed's submission beside `kit submit`: five networks, four views, random weights, in seconds a chip.

    pip install -e .[bench,int8] && python benchmarks/seed_submit.py [--chips N] [--side PX] [--only SIDE...]

Each side predicts the same drawn chips in a process of its own, one side after the other; a number is the mean over the
chips, after one to warm up that is not counted. Loading, tracing and tuning are told apart, as `ready s`.

seed:          the seed's way, written out plainly: five smp U-Nets of two classes (`SMP`; scSE for efficientnet-b4),
               traced in fp32, one after the other; of each chip four flips one by one, normalised with ImageNet's mean
               and deviation; softmax summed over all, argmax, a TIFF of PIL's with deflate.
kit:           `kit submit` with the five recipes of those encoders in one frozen file, four flips, tuned.
kit-bfloat16:  the same, all cores told to compute in bfloat16, where the CPU has it: for the time alone, random weights
               have no masks to keep.
openvino:      as kit, with `--engine openvino`.
openvino-int8: as kit, with `--engine openvino-int8`, all cores told to compute in 8 bits, for the time alone.

`module s` is the tuned module alone, called on the same chips decoded beforehand, right after the submission: what
`kit submit` takes beside it is reading, writing, the archive and its check. Peak memory is that of the process,
everything imported included.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

SMP = {
    "senet154": "senet154", "seresnext50": "se_resnext50_32x4d", "densenet161": "densenet161",
    "inception_v4": "inceptionv4", "efficientnet_b4": "efficientnet-b4",
}  # fmt: skip
SIDES = ("seed", "kit", "kit-bfloat16", "openvino", "openvino-int8")
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
FLIPS = ((), (2,), (3,), (2, 3))  # axes of (N, C, H, W)


def seed_side(chips: list[Path], out: Path) -> dict[str, float]:
    import segmentation_models_pytorch as smp
    from PIL import Image

    start = time.perf_counter()
    models = []
    for encoder in SMP.values():
        attention = "scse" if encoder == "efficientnet-b4" else None
        model = smp.Unet(encoder, encoder_weights=None, classes=2, decoder_attention_type=attention).eval()
        side = Image.open(chips[0]).size[0]
        with torch.no_grad():
            models.append(torch.jit.trace(model, torch.rand(1, 3, side, side), check_trace=False))
    ready_s = time.perf_counter() - start
    seconds = []
    for chip in chips:
        start = time.perf_counter()
        pixels = (np.asarray(Image.open(chip).convert("RGB"), np.float32) / 255 - MEAN) / STD
        image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]
        votes = torch.zeros(1, 2, *image.shape[2:])
        with torch.no_grad():
            for model in models:
                for axes in FLIPS:
                    votes += torch.flip(torch.softmax(model(torch.flip(image, axes)), dim=1), axes)
        mask = Image.fromarray(votes[0].argmax(dim=0).to(torch.uint8).numpy())
        mask.save(out / f"{chip.stem}.tif", compression="tiff_adobe_deflate")
        seconds.append(time.perf_counter() - start)
    return {"ready_s": ready_s, "chip_s": float(np.mean(seconds[1:])), "peak_gb": peak_gb()}


def kit_side(first: Path, chips: Path, weights: Path, engine: str, dtype: str = "") -> dict[str, float | str]:
    """Returns seconds a chip of `kit submit` over a folder of chips, warmed up with the one in `first`."""
    from kit.data.rasters import read_image
    from kit.deploy.engine import backends, openvino, tuning
    from kit.deploy.submission import submit
    from kit.deploy.weights import torchscript

    warm = read_image(next(first.glob("*.tif")))
    if engine == "openvino-int8":
        tile = torch.from_numpy(warm[:256, :256].copy()).permute(2, 0, 1)[None].float()

        def choose(loaded, core, *_: object):
            openvino.quantise(torchscript.core(loaded.module, core), [tile], backends.int8_path(loaded.sha256, core))
            return backends.NetworkSetting(dtype="int8")

        tuning.choose = choose
    if dtype:
        tuning.choose = lambda *_: backends.NetworkSetting(layout="channels_last", dtype=dtype)
    start = time.perf_counter()
    predict, begun = submit._predict, []

    def warmed(job, todo) -> None:
        submit.predict_image(job.weights, warm)
        begun.append((time.perf_counter(), job.weights))
        predict(job, todo)

    submit._predict = warmed
    with tempfile.TemporaryDirectory() as out:
        submit.submit(chips, weights, Path(out) / "all", submit.SubmitOptions(submit.EngineOptions(engine=engine)))
    (began, tuned), ended, peak = begun[0], time.perf_counter(), peak_gb()
    images = [torch.from_numpy(read_image(path)).permute(2, 0, 1)[None] for path in sorted(chips.glob("*.tif"))]
    decoded = time.perf_counter()
    with torch.inference_mode():
        for image in images:
            tuned.module(image)
    alone_s = (time.perf_counter() - decoded) / len(images)
    chip_s = (ended - began) / len(images)
    return {"ready_s": began - start, "chip_s": chip_s, "module_s": alone_s, "peak_gb": peak, "plan": tuned.plan}


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def one_side(side: str, folder: Path) -> None:
    if side == "seed":
        chips = [*(folder / "first").glob("*.tif"), *sorted((folder / "chips").glob("*.tif"))]
        with tempfile.TemporaryDirectory() as out:
            measured = seed_side(chips, Path(out))
    else:
        engine = "torch" if side.startswith("kit") else side
        dtype = side.removeprefix("kit").removeprefix("-") if engine == "torch" else ""
        measured = kit_side(folder / "first", folder / "chips", folder / "weights.pt", engine, dtype)
    print(json.dumps(measured))


def prepare(folder: Path, n_chips: int, side_px: int, recipes: Iterable[str] = SMP) -> None:
    """Draws the chips, one to warm up in `first`, and exports recipes' networks with random weights, four flips."""
    import rasterio

    from kit.deploy.proof import images as drawn
    from kit.deploy.weights.card import Member
    from kit.paths import Paths
    from kit.pipeline.export import ExportRequest, export_ensemble
    from kit.sample.drawing import draw_scene
    from kit.sample.sites import AREAS
    from kit.training.fit import rebuild
    from kit.training.recipe import load_recipe

    drawing = draw_scene(np.random.default_rng(0), AREAS["kum"].look, side_px, side_px * (n_chips + 1))
    for number in range(n_chips + 1):
        image = drawing.image[:, number * side_px : (number + 1) * side_px, :3].transpose(2, 0, 1)
        place = folder / ("chips" if number else "first")
        place.mkdir(exist_ok=True)
        size = {"width": side_px, "height": side_px, "count": 3, "dtype": "uint8"}
        with rasterio.open(place / f"c{number}.tif", "w", driver="GTiff", **size) as file:
            file.write(image)
    models = [rebuild(load_recipe(recipe, Paths(Path()))).model for recipe in recipes]
    members = [Member(recipe, 0, 0, "0" * 64, None) for recipe in recipes]
    export_ensemble(
        folder, models, members, ExportRequest("weights", "random", "flips", None, 0.1, [], drawn.SMALL_CASES)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", type=int, default=2, help="counted ones")
    parser.add_argument("--side", type=int, default=1024, help="of a chip, px")
    parser.add_argument("--only", nargs="*", default=SIDES)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        return one_side(options.run[0], Path(options.run[1]))
    from kit.deploy.engine.backends import dtypes

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
             "from pathlib import Path; from seed_submit import prepare; "
             f"prepare(Path({folder!r}), {options.chips}, {options.side})"],
            check=True,
        )  # fmt: skip
        print(
            f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, "
        )
        print(f"{options.chips} chips of {options.side} x {options.side} px\n")
        print("| side | s a chip | times faster | module s | ready s | peak GB |\n|---|---|---|---|---|---|")
        first, plans = None, []
        for side in options.only:
            if side == "kit-bfloat16" and not dtypes("cpu"):
                continue
            done = subprocess.run(
                [sys.executable, __file__, "--run", side, folder], check=True, capture_output=True, text=True,
                env={**os.environ, "KIT_CACHE": f"{folder}/cache-{side}"},
            )  # fmt: skip
            measured = json.loads(done.stdout.splitlines()[-1])
            plans.append(f"{side}: {measured.get('plan', 'as traced')}")
            first = first or measured["chip_s"]
            alone = f"{measured['module_s']:.1f}" if "module_s" in measured else ""
            print(
                f"| {side} | {measured['chip_s']:.1f} | {first / measured['chip_s']:.2f} | {alone} "
                f"| {measured['ready_s']:.0f} | {measured['peak_gb']:.1f} |", flush=True,
            )  # fmt: skip
        print("", *plans, sep="\n")
    return None


if __name__ == "__main__":
    main()
