"""Draws a catalogue of scenes of any size, for benchmarks of `kit prepare`."""

from pathlib import Path

import numpy as np

from kit.console import meter
from kit.errors import DataError
from kit.sample.city_files import write_train_catalog
from kit.sample.large_city import PATCH_PX, count_patches, draw_large_scene
from kit.sample.plan import GSD_M
from kit.sample.sites import Site
from kit.system.files import replacing


def draw_large_city(
    out: Path, side_px: int, seed: int = 0, scenes: int = 1, *, zoom_out: float = 1.6, patch_px: int = PATCH_PX // 2
) -> Path:
    """Returns the folder of a catalogue with square scenes of one area.

    40,000 px hold some 50,000 footprints.

    Args:
        out: the folder to make.
        side_px: of each scene.
        seed: the same seed gives the same bytes.
        scenes: how many.
        zoom_out, patch_px: see `draw_large_scene`.

    Raises:
        DataError: `out` exists.
    """
    if out.exists():
        raise DataError(f"{out} exists", "remove it, or choose another folder")
    area, gsd_m = "kum", GSD_M * zoom_out
    apart_m = side_px * gsd_m + 100
    sites = [
        Site(f"{area}_{number}", area, side_px, side_px, gsd_m, east_m=number * apart_m) for number in range(scenes)
    ]
    n_patches = sum(count_patches(site, patch_px) for site in sites)
    with replacing(out) as folder, meter("draw patches", n_patches) as progress:
        for number, site in enumerate(sites):
            rng = np.random.default_rng([seed, number])
            draw_large_scene(folder / area, site, rng, progress.advance, patch_px=patch_px, zoom_out=zoom_out)
        write_train_catalog(folder, out.name, "a large city, drawn: scenes with footprints", [area])
    return out
