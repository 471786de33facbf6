"""The ensemble with tuned networks, and single networks of loaded weights."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kit.deploy.engine.backends import Network, NetworkSetting, network
from kit.deploy.freeze.ensemble import Ensemble, unview, view
from kit.deploy.weights import torchscript
from kit.deploy.weights.load import Weights


class TunedEnsemble(Ensemble):
    """`Ensemble` over tuned networks.

    Args:
        networks: one per member.
        views_at_once: per network, number of views in one batch.
        views: see Ensemble.
        pad_multiple: see Ensemble.
        weights: see Ensemble.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        views_at_once: Sequence[int],
        views: str,
        pad_multiple: int,
        weights: Sequence[float] = (),
    ) -> None:
        super().__init__([], views, pad_multiple, weights)
        self.networks, self.views_at_once = list(networks), list(views_at_once)

    def votes(self, x: Tensor) -> list[Tensor]:
        """Returns each network's mean over views of its layers' probabilities, padded: (N, 1 or 3, H, W) each."""
        self.check(x)
        padded = self.padded(x[:, :3].float())
        return [
            mean_over_views(network, padded, self.codes, count)
            for network, count in zip(self.networks, self.views_at_once, strict=True)
        ]


def mean_over_views(network: Network, padded: Tensor, codes: Sequence[int], at_once: int) -> Tensor:
    """Returns a network's mean probabilities over views, (N, 1 or 3, H, W), as of `Network`.

    Up to `at_once` views of one orientation are a batch.
    """
    vote = torch.zeros_like(padded[:, :1])
    for group in _groups(codes, at_once):
        views = [view(padded, code) for code in group]
        logits = network(torch.cat(views) if len(views) > 1 else views[0])
        for code, part in zip(group, torch.sigmoid(logits).chunk(len(group)), strict=True):
            vote = vote + unview(part, code)
    return vote / len(codes)


def _groups(codes: Sequence[int], at_once: int) -> Iterator[Sequence[int]]:
    """Yields up to `at_once` codes at a time; those that transpose (4 and more) separately."""
    for oriented in ([c for c in codes if c < 4], [c for c in codes if c >= 4]):
        for start in range(0, len(oriented), at_once):
            yield oriented[start : start + at_once]


def networks(weights: Weights) -> list[Network]:
    """Returns the networks of weights one by one, as tuned or as exported."""
    if isinstance(weights.module, TunedEnsemble):
        return weights.module.networks
    return [network(weights, member, NetworkSetting(), "torch") for member in range(len(weights.card.members))]


def first_network(weights: Weights) -> Weights:
    """Returns weights with only their first network, in one view."""
    if not torchscript.has_cores(weights.module) and not isinstance(weights.module, TunedEnsemble):
        return weights
    module = TunedEnsemble(networks(weights)[:1], [1], "none", weights.card.pad_multiple)
    return replace(weights, module=module, plan=f"{weights.plan} first")
