"""Weights as a folder for model hubs (`kit weights --folder`)."""

from pathlib import Path

from kit.console import say
from kit.deploy.weights.hub import check_licence, write_hub_folder
from kit.deploy.weights.load import load_weights, named_weights
from kit.paths import Paths
from kit.system.files import sha256_of


def publish(name: str, paths: Paths, out: Path | None, licence: str) -> Path:
    """Writes weights as a folder for model hubs, and returns it.

    The networks are copied as safetensors where their runs are at hand and unchanged.

    Args:
        name: of the weights, or their file.
        paths: of the working root.
        out: the folder; None for `hub/NAME` below the root.
        licence: an identifier, see `write_hub_folder`.

    Raises:
        WeightsError: the weights are missing or damaged.
        OutputError: the folder cannot be written, or was not written by kit.
    """
    check_licence(licence)
    weights = load_weights(named_weights(name, paths.weights))
    networks = []
    for member in weights.card.members:
        file = paths.root / "runs" / member.run_name / "best.safetensors"
        if file.is_file() and sha256_of(file) == member.sha256:
            networks.append(file)
        else:
            say(f"no safetensors of {member.run_name}: its run is not here, or was trained again")
    folder = out or paths.hub(weights.path.stem)
    write_hub_folder(folder, weights.path, weights.card, networks, licence)
    return folder
