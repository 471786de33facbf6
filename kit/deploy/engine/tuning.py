"""How this machine predicts fastest with a weights file: measured once, kept where it predicts alike, remembered."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kit.console import say, track
from kit.deploy.engine import openvino
from kit.deploy.engine.backends import Engine, Network, Setting, dtypes, int8_path, layouts, network
from kit.deploy.engine.memo import recall, remember
from kit.deploy.freeze.ensemble import Ensemble, unview, view
from kit.deploy.weights import torchscript
from kit.deploy.weights.load import Weights
from kit.errors import KitError, WeightsError
from kit.system.devices import keep_freed_memory, keep_kernels, processor_name
from kit.system.ranks import agreed, rank

SECONDS_A_CORE = 20.0  # the longest that choosing may take
AGREEMENT = 0.998  # share of pixels whose mask must be as in float32,
DIFFERENCE = (
    0.002  # or how far probabilities may be from it on average: a network unsure of all turns masks by a breath
)
GAIN = 1.03  # a setting must be so much faster than the shipped one: less is noise
TILES = 3  # images that are looked at
SMALL_PX = 256  # of the tile that tells how long larger ones would take
LARGER = ((3, 256), (1, 512), (3, 512), (1, 1024), (3, 1024))  # tiles and their side in px: what is measured on
INT8_PX = 512  # of the tiles that choose the ranges of 8 bits; on 256 px they come out worse
TRIALS = 2  # settings for which there must be time; small tiles take so long a pixel that there is for more


class TunedEnsemble(Ensemble):
    """The vote of `Ensemble` over cores that compute as this machine likes best.

    Args:
        networks: float32 (N, 3, H, W) in 0..255 -> logits (N, 1, H, W), one a core.
        views_at_once: of each core.
        views: see Ensemble.
        pad_multiple: see Ensemble.
    """

    def __init__(
        self, networks: Sequence[Network], views_at_once: Sequence[int], views: str, pad_multiple: int
    ) -> None:
        super().__init__([], views, pad_multiple)
        self.networks, self.views_at_once = list(networks), list(views_at_once)

    def members(self, x: Tensor) -> Tensor:
        """Returns each network's probability of building: float32 (N, M, H, W), 0..1."""
        self.check(x)
        padded = self.padded(x[:, :3].float())
        cores = zip(self.networks, self.views_at_once, strict=True)
        return self.cropped(
            torch.cat([mean_over_views(network, padded, self.codes, count) for network, count in cores], dim=1), x
        )


def cores(weights: Weights) -> list[Network]:
    """Returns the cores of weights one by one, as tuned, or as they were shipped."""
    if isinstance(weights.module, TunedEnsemble):
        return weights.module.networks
    return [network(weights, core, Setting(), "torch") for core in range(len(weights.card.members))]


def first_look(weights: Weights) -> Weights:
    """Returns weights of which one network alone, the cheapest that the card knows, looks in one view."""
    if not torchscript.has_cores(weights.module) and not isinstance(weights.module, TunedEnsemble):
        return weights
    first = weights.card.adaptive.order[0] if weights.card.adaptive else 0
    module = TunedEnsemble([cores(weights)[first]], [1], "none", weights.card.pad_multiple)
    return replace(weights, module=module, plan=f"{weights.plan} first")


def mean_over_views(network: Network, padded: Tensor, codes: Sequence[int], at_once: int) -> Tensor:
    """Returns a network's mean probability over views, (N, 1, H, W); up to `at_once` of one orientation go together."""
    vote = torch.zeros_like(padded[:, :1])
    for group in _groups(codes, at_once):
        views = [view(padded, code) for code in group]
        logits = network(torch.cat(views) if len(views) > 1 else views[0])
        for code, part in zip(group, torch.sigmoid(logits).chunk(len(group)), strict=True):
            vote = vote + unview(part, code)
    return vote / len(codes)


def _groups(codes: Sequence[int], at_once: int) -> Iterator[Sequence[int]]:
    """Yields up to `at_once` codes at a time; those that transpose (4 and more) apart from the others."""
    for oriented in ([c for c in codes if c < 4], [c for c in codes if c >= 4]):
        for start in range(0, len(oriented), at_once):
            yield oriented[start : start + at_once]


def set_up(
    weights: Weights, samples: Callable[[], Sequence[NDArray[np.uint8]]], tuning: bool, engine: Engine
) -> Weights:
    """Returns weights as they will predict: tuned, see `tune`, or as they were shipped.

    Args:
        weights: as loaded.
        samples: gives the images to be tuned on.
        tuning: whether to.
        engine: what computes.

    Raises:
        KitError: int8 without tuning.
        WeightsError: see `tune`.
    """
    if tuning:
        return tune(weights, samples(), engine)
    if engine == "torch":
        return weights
    if engine == "openvino-int8":
        raise KitError(f"--engine {engine} measures whether int8 keeps the masks", "leave --no-tune out")
    return tuned(weights, [Setting()] * len(weights.card.members), engine)


def tune(weights: Weights, images: Sequence[NDArray[np.uint8]], engine: Engine = "torch") -> Weights:
    """Returns the weights with each core set as this machine predicts fastest.

    The choice is measured on `images` once a file, machine and number of threads, and remembered in the user's cache.
    The process's malloc keeps what is freed from now on: without that a network waits for memory for up to a third of
    its time.
    Settings are taken that predict as the shipped file does, see `predicts_alike`.

    Args:
        weights: as `load_weights` returns them.
        images: real ones, uint8 (H, W, 3 or 4), as they will come.
        engine: what computes.

    Raises:
        WeightsError: an old export, whose cores cannot be called one by one; or another engine than torch gives other
            masks.
    """
    keep_freed_memory()
    keep_kernels()
    if not torchscript.has_cores(weights.module):
        lacking = f"{weights.path} is an old export, whose cores cannot be called one by one"
        if engine != "torch":
            raise WeightsError(f"{lacking}: no engine but torch can run it", "export it again: kit export")
        say(f"{lacking}: it predicts as it was shipped")
        return weights
    return tuned(weights, agreed(_settings(weights, images, engine) if rank() == 0 else []), engine)


def _settings(weights: Weights, images: Sequence[NDArray[np.uint8]], engine: Engine) -> list[Setting]:
    """Returns the settings of the cores, remembered or measured now; as shipped where nothing is to measure on."""
    key, count = _key(weights, engine), len(weights.card.members)
    settings = _remembered(key)
    made = all(int8_path(weights, core).is_file() for core, kept in enumerate(settings) if kept.dtype == "int8")
    if len(settings) == count and made:
        return settings
    if not images:
        return [Setting()] * count
    tiles = [torch.from_numpy(image).permute(2, 0, 1)[None] for image in images]
    settings = [choose(weights, core, tiles, engine) for core in track(range(count), "tune cores")]
    remember("tuning", key, [str(setting) for setting in settings])
    return settings


def tuned(weights: Weights, settings: Sequence[Setting], engine: Engine = "torch") -> Weights:
    """Returns the weights with their cores set as told, one setting a core."""
    networks = [network(weights, core, setting, engine) for core, setting in enumerate(settings)]
    card = weights.card
    ensemble = TunedEnsemble(networks, [setting.views for setting in settings], card.views, card.pad_multiple)
    return replace(weights, module=ensemble, plan=f"{engine} {' '.join(map(str, settings))}")


def in_half(shipped: Weights, weights: Weights) -> Weights | None:
    """Returns the weights with all cores in half precision, also those of which single masks then differ; or None.

    None where that changes nothing: no half precision that is fast, another engine than torch, untuned weights.
    All ranks must call it.

    Args:
        shipped: as loaded.
        weights: the same ones, tuned.
    """
    settings = agreed(_halves(weights) if rank() == 0 else [])
    return tuned(shipped, settings) if settings else None


def _halves(weights: Weights) -> list[Setting]:
    engine, *told = weights.plan.split()
    if engine != "torch" or not (halves := dtypes(weights.device)):
        return []
    kept = [Setting.parse(text) for text in told]
    made = [
        replace(each, layout="channels_last", dtype=halves[0]) if each.dtype == "float32" else each for each in kept
    ]
    return made if made != kept else []


def choose(weights: Weights, core: int, images: Sequence[Tensor], engine: Engine) -> Setting:
    """Returns the fastest setting of a core: first the layout, with it the dtype, with both the views at once.

    `openvino-int8` takes its time beside: int8 is made once a file.
    """
    end = time.monotonic() + SECONDS_A_CORE
    trial = Trial(weights, core, images, engine, end)
    for layout in layouts(engine, weights.device):
        trial.offer(replace(trial.best, layout=layout))
    for dtype in dtypes(weights.device):
        trial.offer(replace(trial.best, layout="channels_last" if engine == "torch" else "plain", dtype=dtype))
    if engine == "openvino-int8":
        _offer_int8(trial, images)
    if weights.card.views != "none" and trial.whole:  # on smaller tiles views together always seem to gain
        trial.offer(replace(trial.best, views=4))
    return trial.best


def _offer_int8(trial: "Trial", images: Sequence[Tensor]) -> None:
    """Makes int8 of a core, from tiles in the corners of the images, and offers it to be tried in their middle."""
    weights, core, start = trial.weights, trial.core, time.monotonic()
    if not (path := int8_path(weights, core)).is_file():
        tiles = [_tile(image, INT8_PX, weights, place) for image in images[:TILES] for place in (0.0, 1.0)]
        openvino.quantise(torchscript.core(weights.module, core), tiles, path)
    trial.end += time.monotonic() - start
    trial.offer(replace(trial.best, dtype="int8"))
    if trial.best.dtype != "int8":
        say(f"network {core} stays in float32: int8 is no faster, or predicts otherwise")


class Trial:
    """Measures settings of one core on the same tiles, and keeps the fastest that predicts as the first does.

    Args:
        weights: as loaded.
        core: its number.
        images: uint8 (1, 3 or 4, H, W).
        engine: what computes.
        end: when to stop, by `time.monotonic`.
    """

    def __init__(self, weights: Weights, core: int, images: Sequence[Tensor], engine: Engine, end: float) -> None:
        self.weights, self.core, self.engine, self.end = weights, core, engine, end
        self.best = Setting()
        shipped = network(weights, core, Setting(), "torch")
        self.tiles = small = [_tile(images[0], SMALL_PX, weights)]
        self.seconds, self.shipped = self.run(shipped, 1)
        for count, side_px in LARGER:
            tiles = [_tile(image, side_px, weights) for image in images[:count]]
            larger = sum(tile.numel() for tile in [tiles[0], *tiles]) / small[0].numel()
            if self.seconds * larger * TRIALS > end - time.monotonic():
                break
            self.tiles = tiles
        self.whole = self.tiles[0].shape == _tile(images[0], LARGER[-1][1], weights).shape  # as chips will come
        self.seconds, self.shipped = self.run(shipped, 1)
        if engine != "torch":
            self.seconds = math.inf  # the shipped setting serves for comparison of masks alone
            self.offer(Setting())
            if self.seconds == math.inf:
                raise WeightsError(f"{engine} predicts otherwise than torch with core {core}", "leave --engine out")

    def offer(self, setting: Setting) -> None:
        """Makes a setting the best if it is: in time, predicting as it should, faster."""
        if setting == self.best and self.seconds < math.inf:
            return
        if self.seconds < math.inf and time.monotonic() + 2 * self.seconds * setting.views > self.end:
            return
        made = network(self.weights, self.core, setting, self.engine)
        seconds, found = self.run(made, setting.views, self.end if self.seconds < math.inf else math.inf)
        if len(found) and seconds * GAIN < self.seconds and predicts_alike(found, self.shipped):
            self.best, self.seconds = setting, seconds

    def run(self, run: Network, views: int, end: float = math.inf) -> tuple[float, Tensor]:
        """Returns seconds a view of all tiles, once warmed up, and their pixels' logits; none after `end`."""
        run(_views(self.tiles[0], views))  # the first run on a size is the slowest
        logits, start = [], time.perf_counter()
        for tile in self.tiles:
            if time.monotonic() > end:
                return math.inf, torch.empty(0)
            logits.append(run(_views(tile, views))[:1].float().flatten().cpu())  # waits for a GPU, too
        return (time.perf_counter() - start) / views, torch.cat(logits)


def predicts_alike(logits: Tensor, shipped: Tensor) -> bool:
    """Returns whether a network's masks or, on average, its probabilities are those of the shipped one."""
    agreement = ((logits > 0) == (shipped > 0)).float().mean()
    difference = (torch.sigmoid(logits) - torch.sigmoid(shipped)).abs().mean()
    return bool(agreement >= AGREEMENT or difference <= DIFFERENCE)


def _views(tile: Tensor, count: int) -> Tensor:
    return torch.cat([view(tile, code) for code in range(count)])


def _tile(image: Tensor, side_px: int, weights: Weights, place: float = 0.5) -> Tensor:
    """Returns a part of an image as the cores take it: float32 (1, 3, H, W), padded, at most `side_px` large.

    It lies in the upper left corner for a place of 0, in the middle for 0.5, in the lower right corner for 1.
    """
    top, left = (int(max(0, side - side_px) * place) for side in image.shape[2:])
    tile = image[:, :3, top : top + side_px, left : left + side_px].float()
    multiple = weights.card.pad_multiple
    padding = (0, -tile.shape[3] % multiple, 0, -tile.shape[2] % multiple)
    return F.pad(tile, padding, mode="replicate").to(weights.device)


def _key(weights: Weights, engine: Engine) -> str:
    """Returns what a choice holds for: the file, the machine, the threads and who computes."""
    processor, threads = processor_name(torch.device(weights.device)), torch.get_num_threads()
    return f"{weights.sha256} {engine} {processor}, {threads} threads, torch {torch.__version__}"


def _remembered(key: str) -> list[Setting]:
    """Returns the settings that were chosen before; none where there are none or they cannot be read."""
    try:
        return [Setting.parse(text) for text in recall("tuning", key) or []]
    except (ValueError, TypeError, AttributeError):
        return []
