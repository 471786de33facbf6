"""The 2nd-place system's claims, each tried in short trainings of lite0: the tables of benchmarks/solution.md.

    python benchmarks/solution.py --root FOLDER [--scenes CATALOG --chips TEST]

Trains every arm with the same number of steps on the sample city, and on a second data set (a catalogue of scenes and a
test set of unlabelled chips). `FOLDER/solution.csv` gets a row per finished training, labelling or prediction, and a
rerun does only what is missing; `--table` only writes the tables. One fold is held out, the same for all arms, and
nothing that a network learns from has seen its tiles: teachers and pseudo-labels come from networks of that fold.

Times are CPU seconds, which other programs on the machine hardly change.
"""

import argparse
import csv
import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch

from kit.console import say
from kit.data.added import parse_added
from kit.data.dataset import read_tile, split_fold
from kit.data.index import read_index
from kit.data.masks import count, pool
from kit.data.sources.chips import find_chips
from kit.data.tiles.options import PrepareOptions, Style
from kit.data.tiles.prepare import prepare
from kit.deploy.engine.backends import EngineOptions
from kit.deploy.freeze.ensemble import Core, Ensemble, portable
from kit.deploy.submission.submit import SubmitOptions
from kit.deploy.weights.load import read_card
from kit.paths import Paths
from kit.pipeline.export_runs import export_runs
from kit.pipeline.pseudo_labels import PseudoOptions
from kit.pipeline.pseudo_quality import expected_quality
from kit.pipeline.pseudo_set import label_chips
from kit.pipeline.run import RunOptions, run
from kit.sample.sample import draw_sample
from kit.training.fit import Setup, load_best, rebuild
from kit.training.length import LengthOptions
from kit.training.oof import best_threshold, read_levels
from kit.training.recipe import load_recipe
from kit.training.run_files import read_result

STEPS, FOLD, SEEDS = 60, 0, (0, 1)
TEACHERS = (0, 1, 2)  # seeds of the networks that label and teach
COLUMNS = ("data", "arm", "seed", "jaccard", "best", "test", "cpu_s")  # best: at the best threshold
TEXT = Path(__file__).with_suffix(".md")
MARK = "<!-- written by solution.py -->"

RECIPE = '''"""lite0 at 0.3 m in two epochs: {arm}, seed {seed}."""

from functools import partial

import albumentations as A

from kit.data.dataset import dataloaders
from kit.models.losses import BCE
from kit.recipes import lite0 as parent
from kit.training.callbacks import BalancedSampler, LossSwitch
from kit.training.distillation import Distillation
from kit.training.mixing import MixUp

data = parent.data
base = learner = partial(parent.learner, reduce=4)  # 0.3 m per pixel: half the time of 0.15 m
fit = partial(parent.fit, epochs=2)
{code}'''

LAYERS = """
learner = partial(base, loss=BCE(), n_out=3)

def data(fold):
    return dataloaders(fold, parent.AUGMENT, parent.BATCH, layers=True)
"""
FLIPS = """
pad, crop, _, *colours = parent.AUGMENT.transforms

def data(fold):
    return dataloaders(fold, A.Compose([pad, crop, A.HorizontalFlip(), A.VerticalFlip(), *colours]), parent.BATCH)
"""
CALLBACK = """
def learner(dls):
    return base(dls).{change}
"""


@dataclass(frozen=True)
class Arm:
    """A training beside the baseline.

    Args:
        claim: in words, for the table.
        code: replaces parts of the recipe.
        added: data sets that train beside z19.
        teacher: whether it learns from the ensemble of the baselines.
        after: arm whose networks make its labels; empty without any.
    """

    claim: str
    code: str = ""
    added: tuple[str, ...] = ()
    teacher: bool = False
    after: str = ""


BASELINE = "baseline"
ARMS = {  # in the order in which they are trained
    BASELINE: Arm("baseline"),
    "hard1": Arm("hard pseudo-labels, one round", added=("hard1",), after=BASELINE),
    "soft1": Arm("soft pseudo-labels, one round", added=("soft1",), after=BASELINE),
    "student": Arm("distillation of the ensemble", CALLBACK.format(change="add_cb(Distillation())"), teacher=True,
                   after=BASELINE),
    "hard2": Arm("hard pseudo-labels, two rounds", added=("hard2",), after="hard1"),
    "layers": Arm("footprint, boundary and contact", LAYERS),
    "mixup": Arm("MixUp", CALLBACK.format(change="add_cb(MixUp())")),
    "lovasz": Arm("Lovasz in the second half", CALLBACK.format(change="add_cb(LossSwitch(1))")),
    "zooms": Arm("zooms 18 and 20 beside 19", added=("z18", "z20")),
    "uniform": Arm("without the balanced sampler", CALLBACK.format(change="remove_cb(BalancedSampler)")),
    "flips": Arm("augmentation by flips instead of D4", FLIPS),
}  # fmt: skip
PREDICTED = {"views none": "none", "views flips": "flips", "views d4": "d4"}  # of the baselines
AS_EXPORTED = SubmitOptions(EngineOptions(tuning=False))
LABELS = {
    "hard1": PseudoOptions(AS_EXPORTED),
    "soft1": PseudoOptions(AS_EXPORTED, soft=True, ignore=None),  # every pixel counts, by its probability
    "hard2": PseudoOptions(AS_EXPORTED, round=2),
}


class Rows:
    """The table of what is finished: FOLDER/solution.csv."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[dict[str, str]] = []
        if file.is_file():
            with file.open(newline="") as text:
                self.rows = list(csv.DictReader(text))

    def add(self, *values: str | float | None) -> None:
        cells = ["" if value is None else round(value, 5) if isinstance(value, float) else value for value in values]
        fresh = not self.file.is_file()
        with self.file.open("a", newline="") as text:
            table = csv.writer(text, lineterminator="\n")
            table.writerows([COLUMNS, cells] if fresh else [cells])
        self.rows.append(dict(zip(COLUMNS, map(str, cells), strict=True)))

    def of(self, data: str, arm: str, column: str = "jaccard") -> dict[str, float]:
        """Returns a column of an arm by seed."""
        chosen = (row for row in self.rows if (row["data"], row["arm"]) == (data, arm) and row[column])
        return {row["seed"]: float(row[column]) for row in chosen}


class DataSet:
    """The arms on one data set, in a root of its own.

    Args:
        name: of the data set in the tables.
        root: where its tiles, runs and weights lie.
        scenes: catalogue of the training scenes.
        chips: unlabelled.
        truth: folder of the chips' labels, which only score; None where there are none.
        rows: finished ones.
        by, k: how the folds are made.
    """

    def __init__(
        self, name: str, root: Path, scenes: Path, chips: Path, truth: Path | None, rows: Rows, by: str, k: int
    ):
        self.name, self.chips, self.rows, self.paths = name, chips, rows, Paths(root)
        self.paths.recipes.mkdir(parents=True, exist_ok=True)
        for grid in ("z19", "z18", "z20"):
            prepare(scenes, self.paths, PrepareOptions(name=grid, by=by, k=k, style=Style(grid=grid, layers=True)))
        valid = split_fold(read_index(self.paths, "z19")[1], FOLD).valid
        self.valid = list(zip(valid["image"], valid["mask"], strict=True))
        self.test = [(str(chip.path), str(truth / f"{chip.id}.tif")) for chip in find_chips(chips)] if truth else []

    def train(self, arm: str, seed: int) -> None:
        chosen, name = ARMS[arm], run_name(arm, seed)
        teacher = self.weights_of(chosen.after) if chosen.teacher else None
        for labels in set(chosen.added) & set(LABELS):
            self.label(labels, self.weights_of(chosen.after))
        recipe = self.paths.recipes / f"{name}.py"
        recipe.write_text(RECIPE.format(arm=chosen.claim, seed=seed, code=chosen.code))
        setup = Setup(LengthOptions(steps=STEPS), restart=True)
        options = RunOptions(
            "z19", parse_added(chosen.added), (FOLD,), seed, workers=0, setup=setup, teacher=teacher, export=False
        )
        start = time.process_time()
        run(str(recipe), self.paths, options)
        cpu_s = time.process_time() - start
        folder = self.paths.run(name, FOLD)
        score, best = read_result(folder).score, best_threshold(read_levels(folder))[1]
        saw_chips = arm == BASELINE or chosen.after
        test = self.predict(self.networks(arm, [seed]), "none", self.test)[0] if self.test and saw_chips else None
        self.rows.add(self.name, arm, seed, score, best, test, cpu_s)

    def label(self, labels: str, weights: Path) -> None:
        """Labels the chips, once."""
        if self.rows.of(self.name, f"labels {labels}"):
            return
        start = time.process_time()
        made = label_chips(self.chips, weights, self.paths, labels, LABELS[labels])
        cpu_s = time.process_time() - start
        for line in made.lines():
            say(line)
        quality = expected_quality(read_card(weights), self.paths, LABELS[labels])
        say(str(quality))
        self.rows.add(self.name, f"labels {labels}", None, quality.jaccard, None, None, cpu_s)

    def weights_of(self, arm: str) -> Path:
        """Returns the ensemble of an arm's networks, exported once."""
        file = self.paths.weights / f"{arm}.pt"
        if not file.is_file():
            runs = [f"{run_name(arm, seed)}/fold{FOLD}" for seed in seeds_of(arm)]
            export_runs(runs, arm, self.paths, "none")
        return file

    def look(self, seed: int) -> None:
        """Scores more views on every third tile, and the teacher by the held-out probabilities of its members."""
        for arm, views in PREDICTED.items():
            if str(seed) not in self.rows.of(self.name, arm):
                jaccard, cpu_s = self.predict(self.networks(BASELINE, [seed]), views, self.valid[::3])
                self.rows.add(self.name, arm, seed, jaccard, None, None, cpu_s)
        if not self.rows.of(self.name, "teacher"):
            card = read_card(self.weights_of(BASELINE))
            jaccard = expected_quality(card, self.paths, PseudoOptions(ignore=None)).jaccard
            test, cpu_s = self.predict(self.networks(BASELINE, TEACHERS), "none", self.test or self.valid[::3])
            self.rows.add(self.name, "teacher", None, jaccard, None, test if self.test else None, cpu_s)

    def networks(self, arm: str, seeds: Sequence[int]) -> list[torch.nn.Module]:
        networks = []
        for seed in seeds:
            network = rebuild(load_recipe(run_name(arm, seed), self.paths)).model
            load_best(network, self.paths.run(run_name(arm, seed), FOLD))
            networks.append(portable(network))
        return networks

    def predict(
        self, networks: Sequence[torch.nn.Module], views: str, pairs: Sequence[tuple[str, str]]
    ) -> tuple[float, float]:
        """Returns the Jaccard index on pairs of image and mask, and CPU seconds per image, in float32."""
        ensemble = Ensemble([Core(network) for network in networks], views, networks[0].pad_multiple).eval()
        counts, cpu_s = [], 0.0
        for image, mask in pairs:
            pixels, truth = read_tile(image, mask)
            start = time.process_time()
            with torch.inference_mode():
                probability = ensemble(torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None])[0, 0].numpy()
            cpu_s += time.process_time() - start
            counts.append(count(probability > 0.5, truth))
        return pool(counts).jaccard, cpu_s / len(pairs)


def run_name(arm: str, seed: int) -> str:
    return f"{arm}_s{seed}"


def seeds_of(arm: str) -> tuple[int, ...]:
    return TEACHERS if arm == BASELINE else SEEDS


def measure(sets: Sequence[DataSet], rows: Rows) -> None:
    """Trains what is missing: the networks that label and teach, then a seed of every arm after the other."""
    labellers = [BASELINE, *dict.fromkeys(arm.after for arm in ARMS.values() if arm.after not in ("", BASELINE))]
    for arm in labellers:
        for seed in seeds_of(arm):
            train_missing(sets, rows, arm, seed)
    for seed in SEEDS:
        for arm in ARMS:
            train_missing(sets, rows, arm, seed)
        for each in sets:
            each.look(seed)


def train_missing(sets: Sequence[DataSet], rows: Rows, arm: str, seed: int) -> None:
    for each in sets:
        if str(seed) not in rows.of(each.name, arm):
            each.train(arm, seed)
            gc.collect()  # the tiles that a Learner keeps


def effect(rows: Rows, data: str, arm: str, column: str = "jaccard") -> str:
    """Returns an arm's gain over the baseline: the mean over seeds, and each seed's."""
    base, other = rows.of(data, BASELINE, column), rows.of(data, arm, column)
    gains = [other[seed] - base[seed] for seed in other if seed in base]
    return f"{mean(gains):+.4f} ({', '.join(f'{gain:+.4f}' for gain in gains)})" if gains else ""


def verdict(rows: Rows, data: str, arm: str, column: str) -> str:
    """Returns gain or loss where the seeds agree, and their mean is larger than the range of the baselines' scores."""
    base, other = rows.of(data, BASELINE, column), rows.of(data, arm, column)
    gains = [other[seed] - base[seed] for seed in other if seed in base]
    if not gains:
        return "not measured"
    noise = max(base.values()) - min(base.values())
    clear = abs(mean(gains)) > noise and min(gains) * max(gains) > 0
    said = "no gain" if not clear else "gain" if gains[0] > 0 else "loss"
    return said if len(gains) == len(SEEDS) else f"{said} (one seed)"


def verdicts(rows: Rows, sets: Sequence[str], arm: str) -> str:
    """Returns the verdicts at the best threshold: at 0.5, the share of building after a short training is chance."""
    by_name = {data: verdict(rows, data, arm, "best") for data in sets}
    by_name |= {f"{data}'s chips": verdict(rows, data, arm, "test") for data in sets if rows.of(data, arm, "test")}
    said = dict.fromkeys(by_name.values())
    return next(iter(said)) if len(said) == 1 else "; ".join(map(": ".join, by_name.items()))


def cpu_s(rows: Rows, data: str, arm: str, whole: bool) -> float:
    """Returns the CPU seconds of one training of an arm; with `whole`, and of what it learns from."""
    own = mean(rows.of(data, arm, "cpu_s").values())
    chosen = ARMS[arm]
    if not whole or not chosen.after:
        return own
    labels = sum(sum(rows.of(data, f"labels {name}", "cpu_s").values()) for name in chosen.added)
    return (
        own
        + labels
        + len(seeds_of(chosen.after)) * cpu_s(rows, data, chosen.after, whole=False)
        + (cpu_s(rows, data, chosen.after, whole=True) - cpu_s(rows, data, chosen.after, whole=False))
    )


def tables(rows: Rows) -> Iterator[str]:
    sets = list(dict.fromkeys(row["data"] for row in rows.rows))
    scored = [
        (data, column, f"{data}{title}")
        for column, title in (("jaccard", ""), ("best", ", best threshold"), ("test", ", test chips"))
        for data in sets
        if rows.of(data, BASELINE, column)
    ]
    yield "| arm | " + " | ".join(title for *_, title in scored) + " | CPU | in all | verdict |"
    yield "|---" * (len(scored) + 4) + "|"
    for arm, chosen in ARMS.items():
        done = [data for data in sets if rows.of(data, arm)]
        if not done:
            continue
        if arm == BASELINE:
            scores = [rows.of(data, arm, column).values() for data, column, _ in scored]
            cells = [f"{mean(each):.4f} ({', '.join(f'{score:.4f}' for score in each)})" for each in scores]
            yield f"| {chosen.claim} | " + " | ".join(cells) + " | 1 | 1 | |"
            continue
        cells = [effect(rows, data, arm, column) for data, column, _ in scored]
        ratios = [mean(cpu_s(rows, data, arm, whole) / cpu_s(rows, data, BASELINE, False) for data in done)
                  for whole in (False, True)]  # fmt: skip
        ratios = [f"{ratio:.1f}" for ratio in ratios]
        yield f"| {chosen.claim} | " + " | ".join([*cells, *ratios, verdicts(rows, sets, arm)]) + " |"
    lines = {"teacher": f"teacher: {len(TEACHERS)} x lite0", "student": "student: lite0",
             BASELINE: "lite0 without a teacher", "views none": "lite0, one view", "views flips": "lite0, 4 flips",
             "views d4": "lite0, 8 views (D4)"}  # fmt: skip
    network = rebuild(load_recipe("lite0", Paths(Path()))).model
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    yield ""
    yield "| prediction | " + " | ".join(title for *_, title in scored) + " | parameters, million | CPU s per chip |"
    yield "|---" * (len(scored) + 3) + "|"
    for arm, title in lines.items():
        if not any(rows.of(data, arm) for data in sets):
            continue
        values = [rows.of(data, arm, column) for data, column, _ in scored]
        cells = [f"{mean(v for seed, v in each.items() if seed in ('', *map(str, SEEDS))):.4f}" if each else ""
                 for each in values]  # fmt: skip
        timed = "views none" if arm in ("student", BASELINE) else arm
        seconds = [s for data in sets for s in rows.of(data, timed, "cpu_s").values()]
        yield (
            f"| {title} | "
            + " | ".join(cells)
            + f" | {millions * (len(TEACHERS) if arm == 'teacher' else 1):.1f} | {mean(seconds):.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="keeps data, runs and rows: rerun to resume")
    parser.add_argument("--scenes", type=Path, help="catalogue of a second data set")
    parser.add_argument("--chips", type=Path, help="its unlabelled chips")
    parser.add_argument("--only", choices=("sample", "scenes"), help="trains on one data set: two calls side by side")
    parser.add_argument("--table", action="store_true", help="only writes the tables of what is finished")
    options = parser.parse_args()
    options.root.mkdir(parents=True, exist_ok=True)
    rows = Rows(options.root / "solution.csv")
    sets = []
    if not options.table and options.only != "scenes":
        city = draw_sample(options.root / "sample")
        scenes, chips, truth = (city / part for part in ("train_tier_1", "test", "test_labels"))
        sets.append(DataSet("sample", options.root / "on_sample", scenes, chips, truth, rows, "scene", 2))
    if not options.table and options.only != "sample" and options.scenes:
        root = options.root / "on_scenes"
        sets.append(DataSet("real scenes", root, options.scenes, options.chips, None, rows, "block", 3))
    if sets:
        measure(sets, rows)
        rows = Rows(rows.file)
    text = TEXT.read_text().split(MARK)[0] + MARK + "\n\n" + "\n".join(tables(rows)) + "\n"
    TEXT.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
