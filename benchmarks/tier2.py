"""Tier 2: how well audit and repair find known damage, and whether training on tier 2 pays. Tables: tier2.md.

    python benchmarks/tier2.py damage CATALOG OUT [--seed 0]       # damages the labels of real scenes
    python benchmarks/tier2.py figures SET --damaged FOLDER --root ROOT   # an audit, and a repair, against the truth
    python benchmarks/tier2.py picture SET BLOCK --damaged FOLDER --root ROOT --out docs/tier2.png
    python benchmarks/tier2.py pays --root ROOT [--steps 80] [--seeds 3]  # five ways to train, in turn; rerun to resume

`damage` writes `scenes.csv` for kit prepare, `damage.json` and `true_footprints/`, as `kit sample` does for its
train_tier_2. `figures` compares `data/SET/audit` with them, and the masks of SET and SET_repaired with the true ones.
"""

import argparse
import csv
import json
import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyogrio
import pyproj
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.features import rasterize

from kit.data.footprints import read_footprints
from kit.data.grids import metres_per_unit
from kit.data.index import read_table
from kit.data.masks import Counts, count, pool
from kit.data.sources.stac import read_scenes
from kit.data.tiles.tile import read_mask
from kit.paths import Paths
from kit.sample.damage import ScenePlace, damage_labels

BLOCK_M = 100.0
LEAST_M2 = 20.0  # buildings that are counted
LEAST_IOU = 0.3  # of two outlines of one building
LEAST_BUILDINGS = 10  # of a block whose shift is counted
NEAR_M = 0.3  # a shift that is right

Outlines = NDArray[np.object_]


def damage(catalog: Path, out: Path, seed: int) -> None:
    """Writes damaged labels of a catalogue's scenes, the damage and the truth."""
    (out / "true_footprints").mkdir(parents=True)
    rows, blocks = [], []
    for number, scene in enumerate(read_scenes(catalog)[1]):
        with rasterio.open(scene.image) as raster:
            crs, to_crs = raster.crs.to_string(), raster.transform
            height, width = raster.shape
            middle = to_crs @ (width / 2, height / 2)
            gsd_m = abs(to_crs.a) * metres_per_unit(raster.crs, *middle)
        place = ScenePlace(scene.area, scene.scene, crs, to_crs, height, width, gsd_m)
        frame = shapely.box(*rasterio.transform.array_bounds(height, width, to_crs))
        outlines = read_footprints(scene.labels, crs, scene.where, frame).on(frame)[0].polygons
        truth = dict(zip([f"{scene.scene}-{n}" for n in range(len(outlines))], _affine(outlines, ~to_crs), strict=True))
        labels, damaged = damage_labels(np.random.default_rng([seed, number]), place, truth, round(BLOCK_M / gsd_m))
        blocks += [asdict(block) for block in damaged]
        for file, shapes in ((f"{scene.scene}.geojson", labels), (f"true_footprints/{scene.scene}.geojson", truth)):
            placed = _affine(np.array([*shapes.values()], dtype=object), to_crs)
            _write_geojson(out / file, dict(zip(shapes, _projected(placed, crs, "EPSG:4326"), strict=True)))
        rows.append((scene.area, scene.scene, 2, scene.image, f"{scene.scene}.geojson"))
    (out / "damage.json").write_text(json.dumps({"blocks": blocks}, indent=2))
    with (out / "scenes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("area", "scene", "tier", "image", "labels"), *rows])


def _write_geojson(file: Path, outlines: dict[str, shapely.Geometry]) -> None:
    features = [
        {"type": "Feature", "id": name, "properties": {"id": name}, "geometry": json.loads(shapely.to_geojson(outline))}
        for name, outline in outlines.items()
    ]
    file.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def _affine(outlines: Outlines, by: rasterio.Affine) -> Outlines:
    return shapely.transform(
        outlines, lambda x, y: (by.a * x + by.b * y + by.c, by.d * x + by.e * y + by.f), interleaved=False
    )


def _projected(outlines: Outlines, crs: str, other: str) -> Outlines:
    change = pyproj.Transformer.from_crs(crs, other, always_xy=True)
    return shapely.transform(outlines, change.transform, interleaved=False)


@dataclass
class Found:
    """Outlines that were reported, those that are true, and which of both agree."""

    reported: int = 0
    true: int = 0
    right: int = 0

    def __add__(self, other: "Found") -> "Found":
        return Found(self.reported + other.reported, self.true + other.true, self.right + other.right)

    @property
    def precision(self) -> float:
        """Share of the reported ones that are true."""
        return self.right / self.reported if self.reported else math.nan

    @property
    def recall(self) -> float:
        """Share of the true ones that are reported."""
        return self.right / self.true if self.true else math.nan


@dataclass
class Figures:
    """What an audit found of known damage."""

    errors_m: list[float] = field(default_factory=list)  # of trusted blocks with enough buildings
    blocks: int = 0  # with enough buildings
    missing: Found = field(default_factory=Found)
    invented: Found = field(default_factory=Found)
    merged: int = 0  # labels that join two buildings
    merged_seen: int = 0  # of them, those with the verdict reshape or ignore

    def lines(self) -> Iterator[str]:
        """Yields the figures as rows of a table."""
        near = sum(error <= NEAR_M for error in self.errors_m)
        yield f"| blocks with {LEAST_BUILDINGS} labelled buildings | {self.blocks} |"
        yield f"| of these trusted | {len(self.errors_m)} |"
        yield f"| shift within {NEAR_M} m, of all / of the trusted | {_share(near, self.blocks)} / " + (
            f"{_share(near, len(self.errors_m))} |"
        )
        if self.errors_m:
            yield f"| shift error, median / 90th percentile | {np.median(self.errors_m):.2f} / " + (
                f"{np.quantile(self.errors_m, 0.9):.2f} m |"
            )
        for name, each in (("missing", self.missing), ("invented", self.invented)):
            yield f"| {name}: true / reported | {each.true} / {each.reported} |"
            yield f"| {name}: precision / recall | {each.precision:.2f} / {each.recall:.2f} |"
        yield f"| merged labels that are reshaped or ignored | {self.merged_seen} of {self.merged} |"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def figures(audit: Path, damaged: Path, labels: dict[str, Path]) -> Figures:
    """Compares an audit with the damage.

    Args:
        audit: its folder.
        damaged: where `damage.json` and `true_footprints/` lie.
        labels: the damaged label file of each scene, by `area/scene`.
    """
    known = json.loads((damaged / "damage.json").read_text())["blocks"]
    result = Figures()
    blocks = pd.read_csv(audit / "blocks.csv")
    for row in blocks[blocks["buildings"] >= LEAST_BUILDINGS].itertuples():
        square = shapely.box(row.left, row.bottom, row.right, row.top)
        own = [block for block in known if block["block"].startswith(f"{row.area}/{row.scene}/")]
        shared = [square.intersection(shapely.box(*block["bounds"])).area for block in own]
        truth = own[int(np.argmax(shared))]
        result.blocks += 1
        if row.trusted:
            result.errors_m.append(math.hypot(row.dx_m + truth["dx_m"], row.dy_m + truth["dy_m"]))
    for name, file in labels.items():
        area, scene = name.split("/")
        if not (audit / "scenes" / area / f"{scene}.gpkg").is_file():
            continue
        own = [block for block in known if block["block"].startswith(f"{name}/")]
        gone, invented, merged = (
            {each for block in own for each in block[key]} for key in ("missing", "invented", "merged")
        )
        rows, outlines, crs = _findings(audit / "scenes" / area / f"{scene}.gpkg")
        verdict, origin = rows["verdict"].to_numpy(), rows["origin"].to_numpy()
        added = outlines[(verdict == "add") & (origin == "prediction")]
        dropped = outlines[(verdict == "drop") & (origin == "label")]
        unsure = outlines[np.isin(verdict, ("reshape", "ignore")) & (origin == "label")]
        true, labelled = _by_id(damaged / "true_footprints" / f"{scene}.geojson", crs), _by_id(file, crs)
        unit_m = metres_per_unit(rasterio.crs.CRS.from_user_input(crs), *outlines[0].centroid.coords[0])
        result.missing += compare(added, np.array([true[each] for each in gone], dtype=object), unit_m)
        result.invented += compare(dropped, np.array([labelled[each] for each in invented], dtype=object), unit_m)
        joined = [labelled[each] for each in merged]
        result.merged += len(joined)
        result.merged_seen += sum(any(_iou(each, other) > 0.9 for other in unsure) for each in joined)
    return result


def _findings(file: Path) -> tuple[pd.DataFrame, Outlines, str]:
    meta, _, wkb, columns = pyogrio.raw.read(file)
    table = pd.DataFrame({name: values.tolist() for name, values in zip(meta["fields"], columns, strict=True)})
    return table, shapely.from_wkb(wkb), str(meta["crs"])


def _by_id(file: Path, crs: str) -> dict[str, shapely.Geometry]:
    features = json.loads(file.read_text())["features"]
    outlines = np.array([shapely.from_geojson(json.dumps(each["geometry"])) for each in features], dtype=object)
    return dict(zip([each["id"] for each in features], _projected(outlines, "EPSG:4326", crs), strict=True))


def compare(reported: Outlines, true: Outlines, unit_m: float) -> Found:
    """Returns how many outlines agree, one to one, of those of at least `LEAST_M2`. Smaller ones may still be partners.

    Args:
        reported: outlines.
        true: outlines, in the same CRS.
        unit_m: metres on the ground per unit of the CRS.
    """
    pairs = []
    for place, each in enumerate(reported):
        pairs += [(_iou(each, other), place, number) for number, other in enumerate(true) if each.intersects(other)]
    partners: dict[int, int] = {}
    for iou, place, number in sorted(pairs, reverse=True):
        if iou >= LEAST_IOU and place not in partners and number not in partners.values():
            partners[place] = number
    large_reported, large_true = (shapely.area(each) * unit_m**2 >= LEAST_M2 for each in (reported, true))
    found = Found(int(large_reported.sum()), int(large_true.sum()))
    found.right = sum(bool(large_reported[place] and large_true[number]) for place, number in partners.items())
    # a reported one whose true partner is just smaller than what is counted is no error, and the other way about
    found.reported -= sum(bool(large_reported[place] and not large_true[number]) for place, number in partners.items())
    found.true -= sum(bool(large_true[number] and not large_reported[place]) for place, number in partners.items())
    return found


def _iou(one: shapely.Geometry, other: shapely.Geometry) -> float:
    union = one.union(other).area
    return one.intersection(other).area / union if union else 0.0


def mask_jaccard(folder: Path, damaged: Path, tiles: Sequence[str]) -> tuple[float, float]:
    """Returns the Jaccard index of some tiles' masks with the true ones, and the share of imagery that is ignored."""
    counts: list[Counts] = []
    ignored = known = 0
    index = read_table(folder / "index.csv")
    for (_, scene), rows in index[index["tile"].isin(tiles)].groupby(["area", "scene"]):
        true = np.array(
            [*_by_id(damaged / "true_footprints" / f"{scene}.geojson", rows["crs"].iloc[0]).values()], object
        )
        tree = shapely.STRtree(true)
        for row in rows.itertuples():
            mask = read_mask(folder / row.mask)
            with rasterio.open(folder / row.mask) as raster:
                near = true[tree.query(shapely.box(row.left, row.bottom, row.right, row.top))]
                truth = rasterize(near, mask.shape, transform=raster.transform) if len(near) else np.zeros_like(mask)
            with rasterio.open(folder / row.image) as image:
                imagery = image.read((1, 2, 3)).any(0)
            counts.append(count(truth == 1, mask))
            ignored, known = ignored + int(((mask == 255) & imagery).sum()), known + int(imagery.sum())
    return pool(counts).jaccard, ignored / max(known, 1)


def show_figures(name: str, repaired: str, damaged: Path, paths: Paths) -> None:
    """Prints the figures of an audit, of its repair, and of the audit of the repair, as far as they are there."""
    folder = paths.data(name)
    labels = _label_files(damaged)
    print(f"| {name} | |\n|---|---|")
    for line in figures(folder / "audit", damaged, labels).lines():
        print(line)
    indexes = {each: paths.data(each) / "index.csv" for each in (name, repaired)}
    tiles = {each: list(read_table(file)["tile"]) for each, file in indexes.items() if file.is_file()}
    for each, own in tiles.items():  # on the tiles that the repair kept
        common = [tile for tile in own if tile in tiles.get(repaired, own)]
        jaccard, ignored = mask_jaccard(paths.data(each), damaged, common)
        share = f"{len(common)} of {len(tiles[name])} tiles"
        print(f"| masks of {each}, {share}: Jaccard / ignored | {jaccard:.3f} / {ignored:.1%} |")
    for each in (name, repaired):
        if (paths.data(each) / "audit" / "buildings.csv").is_file():
            verdicts = pd.read_csv(paths.data(each) / "audit" / "buildings.csv")["verdict"].value_counts()
            print(f"| verdicts of {each} | {', '.join(f'{n} {verdict}' for verdict, n in verdicts.items())} |")


def _label_files(damaged: Path) -> dict[str, Path]:
    if (damaged / "scenes.csv").is_file():
        rows = pd.read_csv(damaged / "scenes.csv").itertuples()
        return {f"{row.area}/{row.scene}": damaged / row.labels for row in rows}
    files = damaged.glob("*/*-labels/*.geojson")
    return {f"{file.parent.parent.name}/{file.stem}": file for file in files}


# a picture of a block before and after

PICTURE_PX, LINE_PX = 440, 2  # side of each half
COLOURS = {"damaged": (230, 40, 40), "kept": (60, 220, 60), "added": (60, 160, 255), "ignored": (255, 0, 200)}  # RGB


def picture(name: str, block: str, damaged: Path, paths: Paths, out: Path) -> None:
    """Writes a block of 100 m twice: with its damaged labels, and with the repaired ones.

    Args:
        name: of the audited and repaired data set.
        block: id in `damage.json`.
        damaged: the catalogue's folder.
        paths: of the root.
        out: picture to write.
    """
    import cv2
    from PIL import Image
    from rasterio.windows import from_bounds

    known = json.loads((damaged / "damage.json").read_text())["blocks"]
    (chosen,) = (each for each in known if each["block"] == block)
    area, scene, _ = block.split("/")
    with rasterio.open(damaged / area / scene / f"{scene}.tif") as raster:
        window = from_bounds(*chosen["bounds"], raster.transform)
        image = raster.read((1, 2, 3), window=window, out_shape=(3, PICTURE_PX, PICTURE_PX)).transpose(1, 2, 0)
        crs = raster.crs.to_string()
    left, _, right, top = chosen["bounds"]
    scale = PICTURE_PX / (right - left)

    def draw(outlines: Iterable[shapely.Geometry], colours: Iterable[str]) -> NDArray[np.uint8]:
        canvas = np.ascontiguousarray(image)
        for outline, colour in zip(outlines, colours, strict=True):
            for part in shapely.get_parts(outline):
                points = (shapely.get_coordinates(part.exterior) - (left, top)) * (scale, -scale) * 16
                cv2.polylines(
                    canvas, [points.round().astype(np.int32)], True, COLOURS[colour], LINE_PX, cv2.LINE_AA, shift=4
                )
        return canvas

    labels = _by_id(_label_files(damaged)[f"{area}/{scene}"], crs).values()
    table, outlines, _ = _findings(paths.data(f"{name}_repaired") / "footprints" / area / f"{scene}.gpkg")
    kinds = np.where(table["sure"] == 0, "ignored", np.where(table["change"] == "added", "added", "kept"))
    halves = draw(labels, ["damaged"] * len(labels)), draw(outlines, kinds)
    gap = np.full((PICTURE_PX, 8, 3), 255, np.uint8)
    both = np.concatenate([halves[0], gap, halves[1]], axis=1)
    Image.fromarray(both).quantize(128, dither=Image.Dither.NONE).save(out, optimize=True)


# whether it pays

RECIPE = '''"""lite0 at 0.3 m, a third of the time at 0.15 m: {arm}, seed {seed}."""

from functools import partial

from kit.recipes import lite0 as parent

data = parent.data
learner = partial(parent.learner, reduce=4, widths=(128, 64, 32, 24, 16))
fit = partial(parent.fit, epochs=2)
'''
ARMS = {  # name of the recipe -> in words, what trains beside tier 1
    "tier1": ("tier 1 alone", ""),
    "raw": ("tier 1 + raw tier 2", "tier2"),
    "repaired": ("tier 1 + repaired tier 2", "tier2_repaired"),
    "predicted": ("tier 1 + tier 2 with predicted labels", "tier2_predicted"),
    "pretrained": ("raw tier 2, then tier 1", ""),
}
COLUMNS = ("data", "arm", "seed", "jaccard")


def relabel(source: Path, target: Path, threshold: float) -> None:
    """Copies an audited data set with masks of what the audit's weights predict.

    Args:
        source: its folder.
        target: folder of the copy.
        threshold: building where the probability is above it.
    """
    from kit.audit.tile_scores import probability_on
    from kit.data.tiles.tile import MASK_FORMAT

    if (target / "index.csv").is_file():
        return
    index = read_table(source / "index.csv")
    for row in index.itertuples():
        for file in (row.image, row.mask):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / row.image, target / row.image)
        with rasterio.open(source / "audit" / "scenes" / row.area / f"{row.scene}.tif") as raster:
            predicted = probability_on(raster, row)
        with rasterio.open(source / row.mask) as old:
            labels = np.where(old.read(1) == 255, 255, predicted > threshold).astype(np.uint8)
            profile = {**old.profile, **MASK_FORMAT}
        with rasterio.open(target / row.mask, "w", **profile) as raster:
            raster.write(labels, 1)
    shutil.copyfile(source / "settings.json", target / "settings.json")
    index.to_csv(target / "index.csv", index=False)


@dataclass
class Setting:
    """Where the arms train, and what they are scored on.

    Args:
        name: in the table.
        paths: of the root with the data sets `tier1` and `tier2`, the latter audited and repaired.
        test: pairs of image and true mask.
        steps: of each arm.
    """

    name: str
    paths: Paths
    test: list[tuple[str, str]]
    steps: int

    def train(self, arm: str, seed: int) -> float:
        """Trains an arm, and returns its Jaccard index on the test images."""
        if arm == "pretrained":
            self._run("pre", seed, "tier2", self.steps // 2)
            self._run(arm, seed, "tier1", self.steps // 2, start_from=f"pre_s{seed}/foldall")
        else:
            self._run(arm, seed, "tier1", self.steps, added=ARMS[arm][1])
        return self._score(f"{arm}_s{seed}")

    def _run(self, arm: str, seed: int, data: str, steps: int, added: str = "", start_from: str = "") -> None:
        from kit.data.added import parse_added
        from kit.pipeline.run import RunOptions, run
        from kit.training.fit import Setup
        from kit.training.length import LengthOptions

        self.paths.recipes.mkdir(parents=True, exist_ok=True)
        recipe = self.paths.recipes / f"{arm}_s{seed}.py"
        recipe.write_text(RECIPE.format(arm=arm, seed=seed))
        setup = Setup(LengthOptions(steps=steps), restart=True)
        options = RunOptions(
            data, parse_added([added] if added else []), ("all",), seed, workers=0, setup=setup, export=False,
            start_from=start_from,
        )  # fmt: skip
        run(str(recipe), self.paths, options)

    def _score(self, recipe: str) -> float:
        import torch

        from kit.data.dataset import read_tile
        from kit.deploy.freeze.ensemble import Core, Ensemble, portable
        from kit.training.fit import load_best, rebuild
        from kit.training.recipe import load_recipe

        network = rebuild(load_recipe(recipe, self.paths)).model
        load_best(network, self.paths.run(recipe, "all"))
        ensemble, counts = Ensemble([Core(portable(network))], "none", 32).eval(), []
        for image, mask in self.test:
            pixels, truth = read_tile(image, mask)
            with torch.inference_mode():
                probability = ensemble(torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None])[0, 0].numpy()
            counts.append(count(probability > 0.5, truth))
        return pool(counts).jaccard


def pays(settings: Iterable[Setting], table: Path, seeds: int) -> None:
    """Trains what is missing of all arms, one seed after the other, and adds a row to a table for each.

    Arms whose data set is not there yet are left to a rerun.
    """
    done = {tuple(row[:3]) for row in csv.reader(table.open())} if table.is_file() else set()
    if not done:
        table.write_text(",".join(COLUMNS) + "\n")
    settings = list(settings)
    for seed in range(seeds):
        for setting in settings:
            for arm in ARMS:
                added = ARMS[arm][1]
                if (setting.name, arm, str(seed)) in done or (added and added not in setting.paths.data_names()):
                    continue
                jaccard = setting.train(arm, seed)
                with table.open("a", newline="") as file:
                    csv.writer(file, lineterminator="\n").writerow((setting.name, arm, seed, round(jaccard, 4)))


def show_arms(table: Path) -> None:
    """Prints the mean over seeds, the scores, and the gain over tier 1 alone, seed by seed."""
    rows = pd.read_csv(table)
    print("| data | arm | Jaccard, mean (each seed) | gain over tier 1 alone, mean (each seed) |\n|---|---|---|---|")
    for (data, arm), own in rows.groupby(["data", "arm"], sort=False):
        base = rows[(rows["data"] == data) & (rows["arm"] == "tier1")].set_index("seed")["jaccard"]
        scores = own.set_index("seed")["jaccard"].sort_index()
        gains = (scores - base).dropna()
        cells = (f"{values.mean():{sign}.3f} ({', '.join(f'{value:{sign}.3f}' for value in values)})"
                 for values, sign in ((scores, ""), (gains, "+")))  # fmt: skip
        print(f"| {data} | {ARMS[arm][0]} | {' | '.join(cells)} |")


def sample_setting(root: Path, steps: int) -> Setting:
    """Returns the sample city's setting: its test chips score."""
    chips = sorted((root / "sample" / "test").glob("*/*.tif"))
    truth = root / "sample" / "test_labels"
    return Setting("sample", Paths(root), [(str(chip), str(truth / f"{chip.stem}.tif")) for chip in chips], steps)


def real_setting(root: Path, held_out: str, steps: int) -> Setting:
    """Returns a setting of real scenes: the tiles of the data set `held_out` score."""
    folder = Paths(root).data(held_out)
    rows = read_table(folder / "index.csv").itertuples()
    return Setting(
        "real scenes", Paths(root), [(str(folder / row.image), str(folder / row.mask)) for row in rows], steps
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    damaging = commands.add_parser("damage")
    damaging.add_argument("catalog", type=Path)
    damaging.add_argument("out", type=Path)
    damaging.add_argument("--seed", type=int, default=0)
    measuring = commands.add_parser("figures")
    measuring.add_argument("set")
    measuring.add_argument("--repaired", help="name of the repaired data set. Default: SET_repaired")
    measuring.add_argument("--damaged", type=Path, required=True)
    measuring.add_argument("--root", type=Path, default=Path())
    drawing = commands.add_parser("picture")
    drawing.add_argument("set")
    drawing.add_argument("block")
    drawing.add_argument("--damaged", type=Path, required=True)
    drawing.add_argument("--root", type=Path, default=Path())
    drawing.add_argument("--out", type=Path, required=True)
    paying = commands.add_parser("pays")
    paying.add_argument("--root", type=Path, default=Path(), help="with data/tier1, tier2, tier2_repaired and sample/")
    paying.add_argument("--real", type=Path, help="another root, with real scenes")
    paying.add_argument("--held-out", default="held_out", help="data set of the real root that scores")
    paying.add_argument("--steps", type=int, default=80)
    paying.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    if given.command == "damage":
        damage(given.catalog, given.out, given.seed)
    elif given.command == "figures":
        show_figures(given.set, given.repaired or f"{given.set}_repaired", given.damaged, Paths(given.root))
    elif given.command == "picture":
        picture(given.set, given.block, given.damaged, Paths(given.root), given.out)
    else:
        table = given.root / "pays.csv"
        settings = [sample_setting(given.root, given.steps)] if (given.root / "sample").exists() else []
        settings += [real_setting(given.real, given.held_out, given.steps)] if given.real else []
        for setting in settings:
            if (setting.paths.data("tier2") / "audit" / "settings.json").is_file():
                relabel(setting.paths.data("tier2"), setting.paths.data("tier2_predicted"), 0.5)
        pays(settings, table, given.seeds)
        show_arms(table)


if __name__ == "__main__":
    main()
