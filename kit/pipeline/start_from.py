"""Which trained weights a run begins with (`kit run --start-from`)."""

from pathlib import Path

from kit.deploy.weights.load import load_weights
from kit.deploy.weights.starter import STARTER, starter_network
from kit.errors import RunError
from kit.paths import Paths
from kit.pipeline.runs import run_folder
from kit.system.files import sha256_of
from kit.training.run_files import BEST


def start_file(name: str, fold: int | str, paths: Paths) -> Path | None:
    """Returns the safetensors file that training of `fold` begins with; None for an empty name.

    A recipe or exported weights stand for the run of the same fold: it has not trained on this fold's validation tiles.

    Args:
        name: a safetensors file, a run `<recipe>/fold<k>`, a recipe, exported weights (`.pt`), or `starter`.
        fold: the fold to be trained.
        paths: of the working root.

    Raises:
        RunError: there is no such run, or it has changed since the export.
        WeightsError: the weights cannot be read.
    """
    if not name:
        return None
    if name == STARTER and (file := starter_network()) and not paths.run(name, fold).is_dir():
        return file
    if name.endswith(".safetensors"):
        if not Path(name).is_file():
            raise RunError(f"no file {name}", "give best.safetensors of a run, a run, or exported weights")
        return Path(name)
    sha256 = ""
    if name.endswith(".pt"):
        members = [member for member in load_weights(Path(name)).card.members if member.fold == fold]
        if len(members) != 1:
            raise RunError(
                f"{name} has {len(members)} members of fold {fold}, expected one", "name a run: <recipe>/fold<k>"
            )
        name, sha256 = members[0].run_name, members[0].sha256
    file = run_folder(name if "/" in name else f"{name}/fold{fold}", paths) / BEST
    if not file.is_file() or (sha256 and sha256_of(file) != sha256):
        problem = "has changed since the export" if file.is_file() else "does not exist"
        raise RunError(f"{file} {problem}: cannot start from it", "name a run <recipe>/fold<k>, or a safetensors file")
    return file
