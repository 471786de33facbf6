"""A folder as model hubs expect it: model card, `config.json`, the weights file, and each network's safetensors."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kit import __version__
from kit.deploy.weights.card import Card
from kit.errors import OutputError, WeightsError
from kit.outputs import check_unclaimed
from kit.system.files import check_writable, read_json, replacing, sha256_of

__all__ = ["CONFIG", "HINT", "check_licence", "is_hub_folder", "weights_in", "write_hub_folder"]

CONFIG = "config.json"
HINT = "download or write the folder again: kit weights --folder NAME"


@dataclass(frozen=True)
class HubConfig:
    """What kit reads in `config.json`; it also holds the card."""

    kit_version: str  # that wrote the folder
    weights: str  # name of the TorchScript file
    sha256: dict[str, str]  # of the files beside, in hex


def write_hub_folder(folder: Path, weights: Path, card: Card, networks: Sequence[Path], licence: str) -> None:
    """Writes the folder; an earlier one is replaced.

    Args:
        folder: to write.
        weights: the TorchScript file of `kit export`.
        card: of the weights.
        networks: safetensors of members whose runs are at hand, named `<recipe>/<fold>/best.safetensors`.
        licence: an identifier as hubs use them, for example `cc-by-4.0`.

    Raises:
        OutputError: the folder cannot be written, or was not written by kit.
    """
    if not is_hub_folder(folder):
        check_unclaimed(folder, "kit weights --folder", "--out")
    check_writable(folder.parent)
    with replacing(folder) as part:
        part.mkdir()
        files = {weights.name: weights}
        files |= {f"{run.parent.parent.name}-{run.parent.name}.safetensors": run for run in networks}
        for name, source in files.items():
            shutil.copyfile(source, part / name)
        config = asdict(HubConfig(__version__, weights.name, {name: sha256_of(part / name) for name in files}))
        config |= {"model_type": "footprintkit", "card": json.loads(card.to_json())}
        (part / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        (part / "README.md").write_text(_model_card(weights.name, card, licence, files))


def is_hub_folder(folder: Path) -> bool:
    """Returns whether a folder looks like one that `write_hub_folder` wrote."""
    try:
        return "footprintkit" in (folder / CONFIG).read_text()
    except (OSError, UnicodeDecodeError):
        return False


def weights_in(folder: Path) -> Path:
    """Returns the TorchScript file in a folder for hubs, once its checksum was compared.

    Raises:
        WeightsError: the folder is damaged or incomplete.
    """
    config = read_json(folder / CONFIG, HubConfig, error=WeightsError, hint=HINT)
    path = folder / config.weights
    if path.parent != folder or path.name not in config.sha256:
        raise WeightsError(f"{folder / CONFIG} names the weights {config.weights!r}, which it does not list", HINT)
    if not path.is_file():
        raise WeightsError(f"{folder} is incomplete: no {path.name}", HINT)
    if (actual := sha256_of(path)) != config.sha256[path.name]:
        expected = config.sha256[path.name]
        raise WeightsError(f"{path} is damaged: sha256 {actual[:12]}..., expected {expected[:12]}...", HINT)
    return path


def _model_card(file: str, card: Card, licence: str, files: Mapping[str, Path]) -> str:
    """Returns README.md with its front matter."""
    name, score = Path(file).stem, card.score
    metrics = "" if score is None else (
        f"model-index:\n- name: {name}\n  results:\n  - task:\n      type: image-segmentation\n    dataset:\n"
        f"      name: validation tiles\n      type: validation\n    metrics:\n    - type: jaccard\n"
        f"      value: {score:.4f}\n"
    )  # fmt: skip
    shown = "none: every tile was trained on" if score is None else f"{score:.4f}"
    gsd = f"{card.gsd_m:.3g} m per pixel" if card.gsd_m else "unknown resolution"
    members = "".join(
        f"| {each.recipe} | {each.fold} | {each.seed} | {'' if each.score is None else f'{each.score:.4f}'} |\n"
        for each in card.members
    )
    listed = "".join(f"- `{each}`\n" for each in files)
    return f"""---
license: {licence}
library_name: footprintkit
pipeline_tag: image-segmentation
tags:
- buildings
- drone-imagery
- remote-sensing
- image-segmentation
{metrics}---

# {name}

Networks that find buildings in drone imagery of about {gsd}. `{file}` holds all of them with
normalisation, test-time views ({card.views}) and the vote. It needs PyTorch alone:

```python
import torch

model = torch.jit.load("{file}", map_location="cpu")
mask = model.mask(image)  # uint8 (N, 3 or 4, H, W), RGB or RGBA of 0 to 255 -> uint8 (N, 1, H, W): 1 is building
```

- Jaccard index on validation tiles: {shown}
- Ground resolution of the training: {gsd}
- Exported {card.created} with kit {card.kit_version} and PyTorch {card.torch_version}

| recipe | fold | seed | Jaccard index |
|---|---|---|---|
{members}
Files:

{listed}- `{CONFIG}`: the card of the weights, and the checksums of the files
"""


def check_licence(licence: str) -> str:
    """Returns a licence identifier.

    Raises:
        OutputError: it holds other characters than letters, digits, `.`, `-` and `_`.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]+", licence):
        raise OutputError(f"--licence {licence!r} is no identifier", "expected one as in cc-by-4.0, mit or other")
    return licence
