"""Measures once per file and machine which settings predict fastest."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kit.console import say, track
from kit.deploy.engine import openvino
from kit.deploy.engine.backends import (
    Engine,
    EngineOptions,
    Network,
    NetworkSetting,
    dtypes,
    int8_path,
    layouts,
    network,
)
from kit.deploy.engine.memo import recall, remember
from kit.deploy.engine.tuned import TunedEnsemble
from kit.deploy.freeze.ensemble import view
from kit.deploy.weights import torchscript
from kit.deploy.weights.load import Weights
from kit.errors import KitError, WeightsError
from kit.system.devices import keep_freed_memory, keep_kernels, processor_name
from kit.system.ranks import agreed, rank

SECONDS_PER_NETWORK = 20.0  # time limit of the choice
AGREEMENT = 0.998  # smallest share of pixels with the same mask as in float32,
DIFFERENCE = 0.002  # or largest mean difference of probabilities: an undertrained network flips pixels near 0.5
GAIN = 1.03  # by which a setting must be faster than the exported one: less may be noise
TILES = 3  # images that settings are measured on
SMALL_PX = 256  # side of the tile from which the time of larger ones is estimated
# number of tiles and their side in px, tried in this order
LARGER = ((3, 256), (1, 512), (3, 512), (1, 1024), (3, 1024))
INT8_PX = 512  # side of the tiles that calibrate int8; with 256 px it predicts worse
TRIALS = 2  # settings for which there must be time; there is usually time for more

Image = NDArray[np.uint8]


def set_up(weights: Weights, samples: Callable[[], Sequence[Image]], options: EngineOptions) -> Weights:
    """Returns weights ready to predict: tuned, see `tune`, or as they were exported. All ranks must call it.

    Args:
        weights: as loaded.
        samples: returns images to tune on; not called if the choice is cached.
        options: device and `adaptive` are not used here.

    Raises:
        KitError: int8 without tuning.
        WeightsError: see `tune`.
    """
    if options.tuning:
        return tune(weights, samples, options.engine)
    if options.engine == "torch":
        return weights
    if options.engine == "openvino-int8":
        raise KitError(
            f"--engine {options.engine} has to measure whether int8 changes the masks", "leave --no-tune out"
        )
    return tuned(weights, [NetworkSetting()] * len(weights.card.members), options.engine)


def tune(weights: Weights, samples: Callable[[], Sequence[Image]], engine: Engine = "torch") -> Weights:
    """Returns the weights with the fastest setting of each network on this machine.

    The choice is measured once per file, machine and number of threads, and cached. Only settings that predict like the
    exported file are used, see `predicts_alike`.

    It also makes the process's malloc keep freed memory, since networks otherwise spend up to a third of their time on
    allocation.

    Args:
        weights: as `load_weights` returns them.
        samples: returns images like those to be predicted, uint8 (H, W, 3 or 4); called only to measure.
        engine: what computes the networks.

    Raises:
        WeightsError: an old export, whose networks cannot be called one by one; or another engine than torch predicts
            other masks.
    """
    keep_freed_memory()
    keep_kernels()
    if not torchscript.has_cores(weights.module):
        lacking = f"{weights.path} is an old export, whose networks cannot be called one by one"
        if engine != "torch":
            raise WeightsError(f"{lacking}: only torch can run it", "export it again: kit export")
        say(f"{lacking}: it is not tuned")
        return weights
    return tuned(weights, agreed(_settings(weights, samples, engine) if rank() == 0 else []), engine)


def _settings(weights: Weights, samples: Callable[[], Sequence[Image]], engine: Engine) -> list[NetworkSetting]:
    """Returns the networks' settings, cached or measured; without images, as exported."""
    key, count = _key(weights, engine), len(weights.card.members)
    known = recall("tuning", key, list[NetworkSetting]) or []
    int8_models = [int8_path(weights.sha256, n) for n, setting in enumerate(known) if setting.dtype == "int8"]
    if len(known) == count and all(path.is_file() for path in int8_models):
        return known
    tiles = [torch.from_numpy(image).permute(2, 0, 1)[None] for image in samples()]
    if not tiles:
        return [NetworkSetting()] * count
    settings = [choose(weights, member, tiles, engine) for member in track(range(count), "tune networks")]
    remember("tuning", key, settings)
    return settings


def _key(weights: Weights, engine: Engine) -> str:
    """Returns what a choice depends on: the file, the engine, the machine and its threads."""
    processor, threads = processor_name(torch.device(weights.device)), torch.get_num_threads()
    return f"{weights.sha256} {engine} {processor}, {threads} threads, torch {torch.__version__}"


def tuned(weights: Weights, settings: Sequence[NetworkSetting], engine: Engine = "torch") -> Weights:
    """Returns the weights with one setting per network."""
    networks = [network(weights, member, setting, engine) for member, setting in enumerate(settings)]
    card = weights.card
    views_at_once = [setting.views for setting in settings]
    ensemble = TunedEnsemble(networks, views_at_once, card.views, card.pad_multiple, card.weights)
    return replace(weights, module=ensemble, plan=f"{engine} {' '.join(map(str, settings))}")


def choose(weights: Weights, member: int, images: Sequence[Tensor], engine: Engine) -> NetworkSetting:
    """Returns the fastest setting of a network: chooses the layout, then the dtype, then the views at once.

    Making an int8 model, once per file, is not counted as time for choosing.
    """
    trial = SettingTrial(weights, member, images, engine, time.monotonic() + SECONDS_PER_NETWORK)
    for layout in layouts(engine, weights.device):
        trial.offer(replace(trial.best, layout=layout))
    for dtype in dtypes(weights.device):
        trial.offer(replace(trial.best, layout="channels_last" if engine == "torch" else "plain", dtype=dtype))
    if engine == "openvino-int8":
        _offer_int8(trial, images)
    if weights.card.views != "none" and trial.whole:  # on smaller tiles several views at once always seem to gain
        trial.offer(replace(trial.best, views=4))
    return trial.best


def _offer_int8(trial: "SettingTrial", images: Sequence[Tensor]) -> None:
    """Makes an int8 model from tiles in the images' corners, and offers it for a trial on the tiles in their middle."""
    weights, member, start = trial.weights, trial.member, time.monotonic()
    if not (path := int8_path(weights.sha256, member)).is_file():
        tiles = [_tile(image, INT8_PX, weights, place) for image in images[:TILES] for place in (0.0, 1.0)]
        openvino.quantise(torchscript.core(weights.module, member), tiles, path)
    trial.end += time.monotonic() - start
    trial.offer(replace(trial.best, dtype="int8"))
    if trial.best.dtype != "int8":
        say(f"network {member} stays in float32: int8 is not faster, or changes its masks")


class SettingTrial:
    """Measures settings of one network on the same tiles, and keeps the fastest that predicts as the exported one.

    Args:
        weights: as loaded.
        member: the network's number.
        images: uint8 (1, 3 or 4, H, W).
        engine: what computes it.
        end: when to stop, by `time.monotonic`.
    """

    def __init__(self, weights: Weights, member: int, images: Sequence[Tensor], engine: Engine, end: float) -> None:
        self.weights, self.member, self.engine, self.end = weights, member, engine, end
        self.best = NetworkSetting()
        exported = network(weights, member, NetworkSetting(), "torch")
        self.tiles = small = [_tile(images[0], SMALL_PX, weights)]
        self.seconds, self.logits = self.run(exported, 1)
        for count, side_px in LARGER:
            tiles = [_tile(image, side_px, weights) for image in images[:count]]
            larger = sum(tile.numel() for tile in [tiles[0], *tiles]) / small[0].numel()
            if self.seconds * larger * TRIALS > end - time.monotonic():
                break
            self.tiles = tiles
        self.whole = self.tiles[0].shape == _tile(images[0], LARGER[-1][1], weights).shape  # the size of chips
        self.seconds, self.logits = self.run(exported, 1)
        if engine != "torch":
            self.seconds = math.inf  # torch serves only to compare masks
            self.offer(NetworkSetting())
            if self.seconds == math.inf:
                raise WeightsError(f"{engine} differs from torch for network {member}", "leave --engine out")

    def offer(self, setting: NetworkSetting) -> None:
        """Makes a setting the best if there is time to try it, it predicts alike, and it is faster."""
        if setting == self.best and self.seconds < math.inf:
            return
        if self.seconds < math.inf and time.monotonic() + 2 * self.seconds * setting.views > self.end:
            return
        candidate = network(self.weights, self.member, setting, self.engine)
        seconds, logits = self.run(candidate, setting.views, self.end if self.seconds < math.inf else math.inf)
        if len(logits) and seconds * GAIN < self.seconds and predicts_alike(logits, self.logits):
            self.best, self.seconds = setting, seconds

    def run(self, run: Network, views: int, end: float = math.inf) -> tuple[float, Tensor]:
        """Returns the seconds per view for all tiles, once warmed up, and the pixels' logits; none after `end`."""
        run(_views(self.tiles[0], views))  # the first run at a size is the slowest
        logits, start = [], time.perf_counter()
        for tile in self.tiles:
            if time.monotonic() > end:
                return math.inf, torch.empty(0)
            logits.append(run(_views(tile, views))[:1].float().flatten().cpu())  # waits for a GPU, too
        return (time.perf_counter() - start) / views, torch.cat(logits)


def predicts_alike(logits: Tensor, exported: Tensor) -> bool:
    """Returns whether a network's masks, or on average its probabilities, are those of the exported one."""
    agreement = ((logits > 0) == (exported > 0)).float().mean()
    difference = (torch.sigmoid(logits) - torch.sigmoid(exported)).abs().mean()
    return bool(agreement >= AGREEMENT or difference <= DIFFERENCE)


def _views(tile: Tensor, count: int) -> Tensor:
    return torch.cat([view(tile, code) for code in range(count)])


def _tile(image: Tensor, side_px: int, weights: Weights, place: float = 0.5) -> Tensor:
    """Returns a part of an image as networks take it: float32 (1, 3, H, W), padded, at most `side_px` large.

    It lies in the upper left corner for a place of 0, in the middle for 0.5, in the lower right corner for 1.
    """
    top, left = (int(max(0, side - side_px) * place) for side in image.shape[2:])
    tile = image[:, :3, top : top + side_px, left : left + side_px].float()
    multiple = weights.card.pad_multiple
    padding = (0, -tile.shape[3] % multiple, 0, -tile.shape[2] % multiple)
    return F.pad(tile, padding, mode="replicate").to(weights.device)
