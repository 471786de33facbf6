"""The soft vote: the mean over networks and views, as a module that TorchScript can compile."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.data.masks import LAYERS
from kit.deploy.weights import torchscript
from kit.deploy.weights.torchscript import exported
from kit.errors import WeightsError, nearest
from kit.models.targets import building_logits

# A view's code: bit 0 flips left-right, bit 1 flips top-bottom, bit 2 transposes before the flips.
VIEWS = {"none": [0], "flips": [0, 1, 2, 3], "d4": [0, 1, 2, 3, 4, 5, 6, 7]}
METHODS = ("probability", "mask", "members")  # of an exported file, beside `forward`
CHANNELS = "channels"  # one more, where every network predicts layers
TURN = 3  # XOR of two codes whose views differ by half a turn


def view_codes(views: str) -> list[int]:
    """Returns the codes of `none`, `flips` or `d4`.

    Raises:
        WeightsError: no such views.
    """
    if views not in VIEWS:
        raise WeightsError(f"no views {views!r}, expected none, flips or d4", nearest(views, VIEWS))
    return VIEWS[views]


def view(x: Tensor, code: int) -> Tensor:
    """Returns one of the 8 flips and turns of x.

    Shape:
        x: (N, C, H, W), any dtype. Output: (N, C, H, W), or (N, C, W, H) for codes 4 to 7.
    """
    if code & 4:
        x = x.transpose(2, 3)
    if code & 1:
        x = x.flip(3)
    if code & 2:
        x = x.flip(2)
    return x


def unview(x: Tensor, code: int) -> Tensor:
    """Returns x as it was before `view(x, code)`: the same steps in reverse order.

    Shape:
        x: (N, C, H, W), any dtype. Output: (N, C, H, W), or (N, C, W, H) for codes 4 to 7.
    """
    if code & 2:
        x = x.flip(2)
    if code & 1:
        x = x.flip(3)
    if code & 4:
        x = x.transpose(2, 3)
    return x


class Core(nn.Module):
    """Wraps a network: pixels to the logit of building, for any training targets.

    Args:
        network: normalises inside; float32 (N, 3, H, W) in 0..255 -> logits (N, 1 to 3, H, W), see `building_logits`.
        layers: return all three logits of a network that predicts layers.
    """

    def __init__(self, network: nn.Module, layers: bool = False) -> None:
        super().__init__()
        self.network, self.layers = network, layers

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, 1, H, W) float32; with layers (N, 3, H, W), of which the first is building."""
        logits = self.network(x).float()
        return logits if self.layers else building_logits(logits)


class Ensemble(nn.Module):
    """The mean over networks, equal or weighted, of the mean over views of the probability of building.

    Args:
        cores: each a `Core`, or its trace; H and W are multiples of `pad_multiple`.
        views: `none`, `flips` (4) or `d4` (8).
        pad_multiple: px; a multiple of every core's.
        weights: of the networks' votes, with the sum 1; empty: equal weights.

    Shape:
        Input of every method: uint8 or float, 0..255, (N, 3 or 4, H, W), RGB or RGBA; any N, H, W.
        Where alpha is 0 the probability is 0.
    """

    codes: list[int]  # TorchScript needs these in the class body
    weights: list[float]
    weighted: bool  # freezing keeps one branch

    def __init__(
        self, cores: Sequence[nn.Module], views: str, pad_multiple: int, weights: Sequence[float] = ()
    ) -> None:
        super().__init__()
        self.cores = nn.ModuleList(cores)
        self.codes = view_codes(views)
        self.pad_multiple = pad_multiple
        self.weights, self.weighted = [float(weight) for weight in weights] or [1.0], len(weights) > 0

    def forward(self, x: Tensor) -> Tensor:
        """Returns `probability`."""
        return self.probability(x)

    @exported
    def probability(self, x: Tensor) -> Tensor:
        """Returns the probability of building: float32 (N, 1, H, W), 0..1."""
        return self.vote(self.members(x))

    def vote(self, members: Tensor) -> Tensor:
        """Returns the mean of the networks' probabilities by weight: (N, M, H, W) -> (N, 1, H, W)."""
        if self.weighted:
            total = torch.zeros_like(members[:, :1])
            for number, weight in enumerate(self.weights):
                total = total + members[:, number : number + 1] * weight
            return total.clamp(max=1.0)  # rounding may exceed it
        return members.mean(dim=1, keepdim=True)

    @exported
    def mask(self, x: Tensor) -> Tensor:
        """Returns where the probability is above one half: uint8 (N, 1, H, W), 0 or 1."""
        return (self.probability(x) > 0.5).to(torch.uint8)

    @exported
    def members(self, x: Tensor) -> Tensor:
        """Returns each network's probability of building: float32 (N, M, H, W), 0..1."""
        return self.cropped(torch.cat([vote[:, :1] for vote in self.votes(x)], dim=1), x)

    @exported
    def channels(self, x: Tensor) -> Tensor:
        """Returns the probabilities of the layers footprint, boundary and contact: float32 (N, 3, H, W), 0..1.

        The first is `probability`. Of networks that predict no layers it is the only one.
        """
        votes = self.votes(x)
        layers: list[Tensor] = []
        for layer in range(votes[0].size(1)):
            layers.append(self.vote(torch.cat([vote[:, layer : layer + 1] for vote in votes], dim=1)))
        return self.cropped(torch.cat(layers, dim=1), x)

    def votes(self, x: Tensor) -> list[Tensor]:
        """Returns each network's mean over views of its layers' probabilities, padded: (N, 1 or 3, H, W) each."""
        self.check(x)
        padded = self.padded(x[:, :3].float())
        # freezing would unroll a loop of known length: a copy of each network per view, in every method
        views = len(self.codes) + 0 * x.size(0)
        votes: list[Tensor] = []
        for core in self.cores:
            vote = torch.zeros_like(padded[:, :1])
            for place in range(views):  # one view at a time: memory stays that of one view
                code = self.codes[place]
                vote = vote + unview(torch.sigmoid(core(view(padded, code))), code)
            votes.append(vote / len(self.codes))
        return votes

    def cropped(self, probs: Tensor, x: Tensor) -> Tensor:
        """Returns padded probabilities at the size of x, 0 where alpha is."""
        probs = probs[:, :, : x.size(2), : x.size(3)]
        if x.size(1) == 4:
            probs = probs.masked_fill(x[:, 3:4] == 0, 0.0)
        return probs.contiguous()

    def padded(self, x: Tensor) -> Tensor:
        """Returns float x with its last row and column repeated to the next multiples of `pad_multiple`."""
        below = (self.pad_multiple - x.size(2) % self.pad_multiple) % self.pad_multiple
        right = (self.pad_multiple - x.size(3) % self.pad_multiple) % self.pad_multiple
        return F.pad(x, [0, right, 0, below], mode="replicate")

    def check(self, x: Tensor) -> None:
        """Raises ValueError (torch.jit.Error in the exported file) when x is not an image batch."""
        if x.dim() != 4:
            raise ValueError(f"expected an image batch (N, 3 or 4, H, W), got {x.dim()} dimensions")
        if x.size(1) != 3 and x.size(1) != 4:
            raise ValueError(f"expected 3 (RGB) or 4 (RGBA) channels in (N, C, H, W), got {x.size(1)}")
        if x.size(2) == 0 or x.size(3) == 0:
            raise ValueError(f"expected an image of at least 1 x 1 px, got {x.size(3)} x {x.size(2)}")
        if x.dtype != torch.uint8 and not x.is_floating_point():
            raise ValueError(f"expected uint8 or float in 0..255, got {x.dtype}")


class OneGraph(Ensemble):
    """The ensemble for exporters that trace with symbolic sizes, so that one graph serves all sizes.

    It neither branches on sizes nor slices, which would compare two sizes: padding, cropping and alpha use indexing.
    All views of one shape are one batch, which needs more memory. With one view after the other, the graph would be
    four times as long and as slow to load.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns `probability`."""
        return self.vote(self.members(x))

    def members(self, x: Tensor) -> Tensor:
        """Returns each network's probability of building: float32 (N, M, H, W), 0..1."""
        padded = self.padded(x.index_select(1, numbers(x, 3)).float())
        votes: list[Tensor] = []
        for core in self.cores:
            vote = torch.zeros_like(padded[:, :1])
            for codes in ([c for c in self.codes if not c & 4], [c for c in self.codes if c & 4]):
                if codes:
                    batch = torch.cat([view(padded, code) for code in codes])
                    by_view = torch.sigmoid(core(batch)).unflatten(0, (len(codes), x.size(0)))  # (views, N, 1, H, W)
                    for place, code in enumerate(codes):
                        vote = vote + unview(by_view[place], code)
            votes.append(vote / len(self.codes))
        return self.cropped(torch.cat(votes, dim=1), x)

    def cropped(self, probs: Tensor, x: Tensor) -> Tensor:
        """Returns padded probabilities at the size of x, 0 where alpha is."""
        for axis in (2, 3):
            probs = probs.index_select(axis, numbers(x, x.size(axis)))
        channels = x.new_full([1], x.size(1), dtype=torch.int64)
        alpha = x.index_select(1, channels - 1).float()  # few engines compare bytes; (N, 1, H, W)
        return probs.masked_fill((alpha == 0) & (channels == 4), 0.0)

    def padded(self, x: Tensor) -> Tensor:
        """Returns float x with its last row and column repeated to the next multiples of `pad_multiple`."""
        for axis in (2, 3):
            places = numbers(x, self.units(x, axis) * self.pad_multiple)
            x = x.index_select(axis, places.clamp(max=x.size(axis) - 1))
        return x

    def units(self, x: Tensor, axis: int) -> int:
        """Returns how many times `pad_multiple` covers a side of x: a symbol of its own, as if read from a tensor.

        Derived from the side, it would add a formula to every size of the graph; and where a network asks for a memory
        format, the exporter would assume more than one unit, which fails for small images.
        """
        ceiling = x.new_full([], x.size(axis), dtype=torch.int64) + (self.pad_multiple - 1)
        units: int = (ceiling // self.pad_multiple).item()  # type: ignore[assignment] # int() would need its value
        torch._check(units >= 1)
        return units


def numbers(like: Tensor, n: int) -> Tensor:
    """Returns 0 to n - 1, int64, on the device of `like`: a device by name would end up in the file."""
    return like.new_ones([n], dtype=torch.int64).cumsum(0) - 1


def portable(network: nn.Module) -> nn.Module:
    """Returns a copy for any machine: CPU, float32, plain memory format, eval mode, no gradients."""
    for layer in network.modules():
        for name, value in vars(layer).items():  # weights computed by spectral_norm in training cannot be copied
            if isinstance(value, Tensor) and not value.is_leaf:
                vars(layer)[name] = value.detach()
    return copy.deepcopy(network).eval().cpu().float().to(memory_format=torch.contiguous_format).requires_grad_(False)


def predict_layers(networks: Sequence[nn.Module]) -> bool:
    """Returns whether every network predicts layers: logits (N, 3, H, W)."""
    with torch.inference_mode():
        return all(
            network(torch.zeros(1, 3, *[2 * int(network.pad_multiple)] * 2)).shape[1] == len(LAYERS)  # type: ignore[arg-type]
            for network in networks
        )


def freeze(networks: Sequence[nn.Module], views: str, pad_multiple: int, weights: Sequence[float] = ()) -> Any:
    """Returns the ensemble of networks as one frozen ScriptModule with the methods of `Ensemble`.

    Args:
        networks: as `Core` takes them, and as `portable` makes them.
        views: `none`, `flips` or `d4`.
        pad_multiple: px; a multiple of every network's.
        weights: of the networks' votes, see `Ensemble`.
    """
    side_px = 2 * pad_multiple  # at 1 x pad_multiple the deepest map is 1 px: a size that hides broadcasting
    example = torch.full((2, 3, side_px, side_px), 127.0)
    layers = predict_layers(networks)
    cores = [torchscript.trace(Core(network, layers), example) for network in networks]
    methods = (*METHODS, CHANNELS) if layers else METHODS
    return torchscript.frozen(Ensemble(cores, views, pad_multiple, weights), methods, len(cores))
