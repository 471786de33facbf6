"""The sample city: a small synthetic data set in the challenge's layout. The same seed gives the same bytes.

It has three areas with two training scenes each (RGBA GeoTIFFs in UTM, footprints in EPSG:4326), and two test mosaics
of 0.075 and 0.12 m per pixel. The mosaics are cut into shuffled chips without georeference; their true masks are in a
folder of their own. A scale above 1 makes the training scenes larger. Tier 2 has three other areas, whose labels are
damaged; `damage.json` records how.
"""

import csv
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from kit.console import Meter, meter
from kit.errors import DataError
from kit.sample.city_files import (
    Json,
    as_geojson,
    item,
    link,
    tif_asset,
    write_catalog,
    write_image,
    write_json,
    write_mask,
    write_scene,
    write_train_catalog,
)
from kit.sample.damage import write_tier_2_scene
from kit.sample.drawing import Bytes, draw_at, draw_scene
from kit.sample.large_city import PATCH_PX, count_patches, draw_large_scene
from kit.sample.sites import AREAS, BLOCK_PX, CHIP_PX, TEST, TIER_2, TIER_2_AREAS, TRAIN, Site
from kit.system.cpu import cpu_count
from kit.system.files import replacing
from kit.system.workers import spread

VERSION = 2  # of the drawing; increased when the bytes change
MAX_SCALE = 1000  # sides of 70,000 px
FIRST_OF_TIER_2 = 100  # number of its first scene, for the seed
MAX_PROCESSES = 4  # that draw tier 2; each needs about 600 MB

Place = tuple[str, str, int, int, float]  # a chip's id, its mosaic, its row and column there, metres per pixel


def draw_sample(out: Path, seed: int = 0, scale: float = 1, *, shrink: int = 1) -> Path:
    """Draws the sample city into a folder unless it exists there; returns the folder.

    A city of an earlier version that lacks tier 2 gains it.

    Args:
        out: the folder.
        seed: random seed.
        scale: factor on the area of each training scene, at the same resolution; a scene of a scale above 1 is a mosaic
            of patches, see `kit.sample.large_city`. Tier 2 and the test chips do not change.
        shrink: divides the sides of scenes, patches and chips; for tests.

    Raises:
        DataError: `out` exists and holds something else, or the scale is out of range.
    """
    if not 1 <= scale <= MAX_SCALE:
        raise DataError(
            f"scale {scale} is out of range", f"expected 1 to {MAX_SCALE}: factor on the area of each scene"
        )
    stamp: Json = {"seed": seed, "version": VERSION, "shrink": shrink}
    if scale > 1:
        stamp["scale"] = float(scale)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if _stamp(out) == stamp:
            if not (out / "train_tier_2").exists():
                with meter("draw scenes", len(TIER_2)) as progress:
                    _draw_tier_2(out, seed, shrink, progress)
            return out
        raise _occupied(out, seed, scale)
    train = [site.sized(shrink, scale) for site in TRAIN]
    test = [site.sized(shrink) for site in TEST]
    patch_px = PATCH_PX // shrink
    n_parts = sum(count_patches(site, patch_px) for site in train) if scale > 1 else len(train)
    places: list[Place] = []
    with (
        replacing(out) as folder,
        meter("draw patches" if scale > 1 else "draw scenes", n_parts + len(test) + len(TIER_2)) as progress,
    ):
        for number, site in enumerate((*train, *test)):
            rng = np.random.default_rng([seed, number])
            area_folder = folder / "train_tier_1" / site.area
            if site in train and scale > 1:
                draw_large_scene(area_folder, site, rng, progress.advance, patch_px=patch_px)
                continue
            size = site.height_px, site.width_px
            if site in train:
                drawing = draw_scene(rng, AREAS[site.area].look, *size)
                outlines = (house.outline for house in drawing.plan.houses)
                write_scene(area_folder, site, drawing.image, as_geojson(site, outlines))
            else:
                drawn = draw_at(rng, AREAS[site.area].look, *size, site.gsd_m)
                places += _write_chips(folder, site, *drawn, CHIP_PX // shrink, seed)
            progress.advance()
        write_train_catalog(
            folder / "train_tier_1", "train_tier_1", "sample city, drawn: scenes with footprints", AREAS
        )
        _draw_tier_2(folder, seed, shrink, progress)
        _write_test_catalog(folder, sorted(places))
        write_json(folder / "sample.json", stamp)
    return out


def _draw_tier_2(out: Path, seed: int, shrink: int, progress: Meter) -> None:
    """Draws the scenes with damaged labels, their catalogue and `damage.json`."""
    sites = [site.sized(shrink) for site in TIER_2]
    with replacing(out / "train_tier_2") as folder:
        jobs = [(folder, site, (seed, FIRST_OF_TIER_2 + n), BLOCK_PX // shrink) for n, site in enumerate(sites)]
        blocks = {}
        processes = 1 if shrink > 1 else min(cpu_count(), MAX_PROCESSES)
        for job, damage in spread(write_tier_2_scene, jobs, processes, "drawing scenes"):
            blocks[job[1].scene] = damage
            progress.advance()
        write_json(
            folder / "damage.json", {"blocks": [asdict(block) for site in sites for block in blocks[site.scene]]}
        )
        description = "sample city, drawn: scenes with damaged footprints"
        write_train_catalog(folder, "train_tier_2", description, TIER_2_AREAS)


def _stamp(out: Path) -> Json | None:
    """Returns the content of `sample.json`; None if it is missing or damaged."""
    try:
        stamp: Json = json.loads((out / "sample.json").read_text())
    except (OSError, ValueError):
        return None
    return stamp


def _occupied(out: Path, seed: int, scale: float) -> DataError:
    """Returns the error for a folder that holds something else."""
    large = scale > 1
    return DataError(
        f"{out} exists, and is not the sample city of seed {seed}"
        f"{f' and scale {scale:g}' if large else ''} (version {VERSION})",
        f"choose another folder: kit sample --seed {seed}{f' --scale {scale:g}' if large else ''} "
        f"--out {out.name or 'sample'}-{seed}{f'-x{scale:g}' if large else ''}",
    )


def _write_chips(folder: Path, site: Site, image: Bytes, truth: Bytes, side_px: int, seed: int) -> list[Place]:
    """Writes a mosaic as chips named by a hash, and their true masks into `test_labels`; returns each chip's place."""
    geometry = {"type": "Polygon", "coordinates": [[[0.0, 0.0]] * 4]}
    home = [link("root", "../catalog.json"), link("parent", "../catalog.json")]
    height, width = truth.shape
    places = []
    for row, col in np.ndindex(height // side_px, width // side_px):
        chip = hashlib.sha256(f"{seed}/{site.scene}/{row}/{col}".encode()).hexdigest()[:6]
        cut = np.s_[row * side_px : (row + 1) * side_px, col * side_px : (col + 1) * side_px]
        write_image(folder / "test" / chip / f"{chip}.tif", image[cut], blocksize=256, overviews="NONE")
        write_json(folder / "test" / chip / f"{chip}.json", item(chip, geometry, home, {"image": tif_asset(chip)}))
        write_mask(folder / "test_labels" / f"{chip}.tif", truth[cut])
        places.append((chip, site.scene, row, col, site.gsd_m))
    return places


def _write_test_catalog(folder: Path, places: list[Place]) -> None:
    """Writes the catalogue of the chips, in the order of their ids, and the table of their places."""
    links = [link("item", f"./{chip}/{chip}.json", "application/geo+json") for chip, *_ in places]
    write_catalog(folder / "test", "test", "sample city, drawn: test chips without labels or georeference", links)
    with (folder / "test_labels" / "chips.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("chip", "scene", "row", "col", "gsd_m"))
        writer.writerows(places)
