import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from factories import prepare, write_catalog, write_footprints

import kit
from kit.data.index import refold
from kit.data.tiles import jobs
from kit.data.tiles import ledger as records
from kit.data.tiles.cutting import Block, Cut, Failed
from kit.data.tiles.ledger import Ledger
from kit.errors import CutError, DataError, KitError, OutputError
from kit.paths import Paths
from kit.system.files import write_bytes

Cli = Callable[..., tuple[int, str, str]]
STYLE = {"grid": "native", "side_px": 32}
SCENES = {"kam": {"a": {"seed": 1}, "b": {"seed": 2}}, "znz": {"c": {"seed": 3}}}


class Killed(BaseException):
    """Stands for SIGKILL: nothing that runs in between catches it."""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A catalogue of three scenes with nine tiles each."""
    return write_catalog(tmp_path / "train_tier_1", SCENES)


def cut(catalog: Path, root: Path, **options: object) -> Path:
    """Returns the folder of the data set."""
    return root / "data" / prepare(catalog, Paths(root), **STYLE | options).name


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def marks(folder: Path) -> dict[str, tuple[int, int]]:
    """Returns what changes when a file is written anew, of tiles and masks."""
    found = {}
    for part in ("images", "masks"):
        for file in (folder / part).rglob("*"):
            if file.is_file() and not file.name.startswith("."):
                found[str(file.relative_to(folder))] = file.stat().st_ino, file.stat().st_mtime_ns
    return found


def written_anew(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> set[str]:
    """Returns the scenes with a tile that is not what it was."""
    files = [file for file in before.keys() | after.keys() if before.get(file) != after.get(file)]
    return {"/".join(file.split("/")[1:3]) for file in files}


def touch(file: Path) -> None:
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 10**9))


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Ends the command in the middle of writing a file: its unfinished name is there, its own is not."""
    left, write = number, Path.write_bytes

    def dying(self: Path, data: bytes) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            write(self, data[: len(data) // 2])
            raise Killed
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", dying)


def test_killed_anywhere_and_given_again_it_is_as_never_killed(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = content(cut(small, tmp_path / "whole"))
    root, done, kills = tmp_path / "root", {}, 0
    folder = root / "data/train_tier_1"
    for _ in range(100):
        with monkeypatch.context() as patch:
            kill_at(patch, 8)
            try:
                cut(small, root)
                break
            except Killed:
                kills += 1
        assert not (folder / "index.csv").exists()
        now = marks(folder)
        assert all(now.get(file) == mark for file, mark in done.items())  # nothing is cut twice
        # an image without its mask is not finished
        done = {file: mark for file, mark in now.items() if file.replace("images", "masks", 1) in now}
    assert kills > 5
    assert content(folder) == whole
    assert all(marks(folder)[file] == mark for file, mark in done.items())


@pytest.mark.parametrize("change", ["image", "labels", "again"])
def test_killed_while_old_tiles_are_removed_leaves_no_index_of_them(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch, change: str
):
    """And changed back, the scene is not taken for whole."""
    folder = cut(small, tmp_path)
    whole = content(folder)
    file = small / ("kam/a/a.tif" if change == "image" else "kam/a-labels/a.geojson")
    before, remove = file.stat(), shutil.rmtree
    if change != "again":
        touch(file)
    for killed_at in ("masks", "images"):

        def dying(path: Path, killed_at: str = killed_at, **_: object) -> None:
            if killed_at in str(path):
                for tile in list(path.iterdir())[:3]:
                    tile.unlink()
                raise Killed
            remove(path, ignore_errors=True)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(records.shutil, "rmtree", dying)
            cut(small, tmp_path, only=["kam/a"] if change == "again" else ())
        assert not (folder / "index.csv").exists()
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        cut(small, tmp_path)
        assert content(folder) == whole
        if change != "again":
            touch(file)


def test_given_again_nothing_is_cut_and_no_byte_changes(tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch):
    folder = cut(small, tmp_path, by="scene", k=2)
    refold(Paths(tmp_path), "train_tier_1", "tile", 3)
    before = content(folder)
    times = {file: (folder / file).stat().st_mtime_ns for file in before}
    monkeypatch.setattr(jobs, "cut_block", lambda block: pytest.fail("a block is cut again"))
    made = prepare(small, Paths(tmp_path), **STYLE, by="scene", k=2)
    assert made.kept == 3
    assert set(made.index["fold"]) == {0, 1, 2}  # as `kit folds` made them
    assert content(folder) == before
    assert {file: (folder / file).stat().st_mtime_ns for file in before} == times


def test_an_area_may_be_called_na(tmp_path: Path):
    """As Namibia is: pandas would take it for a missing value."""
    catalog = write_catalog(tmp_path / "c", {"NA": {"null": {}, "007": {"seed": 1}}})
    cut(catalog, tmp_path)
    made = prepare(catalog, Paths(tmp_path), **STYLE)
    assert made.kept == 2
    assert set(made.index["area"]) == {"NA"}
    assert set(made.index["scene"]) == {"null", "007"}


def test_other_folds_are_made_without_cutting(tmp_path: Path, small: Path):
    folder = cut(small, tmp_path, by="scene", k=2)
    before = marks(folder)
    made = prepare(small, Paths(tmp_path), **STYLE, by="area", k=2)
    assert marks(folder) == before
    assert made.index.groupby("area")["fold"].nunique().eq(1).all()
    assert pd.read_csv(folder / "index.csv")["fold"].tolist() == made.index["fold"].tolist()


def edit_labels(catalog: Path) -> None:
    file = catalog / "kam/b-labels/b.geojson"
    features = json.loads(file.read_text())["features"]
    file.write_text(json.dumps({"type": "FeatureCollection", "features": features[:1]}))


def replace_image(catalog: Path) -> None:
    write_catalog(catalog.parent / "other", {"kam": {"b": {"seed": 2, "height": 71}}})
    (catalog.parent / "other/kam/b/b.tif").replace(catalog / "kam/b/b.tif")


CHANGES: dict[str, tuple[Callable[[Path], None], dict[str, object], set[str]]] = {
    "touched": (lambda catalog: touch(catalog / "kam/b/b.tif"), {}, {"kam/b"}),
    "replaced": (replace_image, {}, {"kam/b"}),
    "labels": (edit_labels, {}, {"kam/b"}),
    "style": (lambda catalog: None, {"min_valid": 0.6}, {"kam/a", "kam/b", "znz/c"}),
    "tier": (lambda catalog: None, {"tier": 2}, {"kam/a", "kam/b", "znz/c"}),
    "again": (lambda catalog: None, {"only": ["kam/b"]}, {"kam/b"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_cut_again_and_nothing_else(tmp_path: Path, small: Path, change: str):
    alter, options, affected = CHANGES[change]
    folder = cut(small, tmp_path)
    before = marks(folder)
    alter(small)
    cut(small, tmp_path, **options)
    assert written_anew(before, marks(folder)) == affected
    if change != "again":
        fresh = cut(small, tmp_path / "fresh", **options)
        assert content(folder) == content(fresh)


def test_scenes_come_and_go(tmp_path: Path, small: Path):
    folder = cut(small, tmp_path)
    before, whole = marks(folder), content(folder)
    for file in (small / "catalog.json", small / "kam/collection.json"):
        shutil.copy(file, tmp_path / file.name)
    listed = json.loads((small / "kam/collection.json").read_text())
    listed["links"] = [link for link in listed["links"] if not link["href"].startswith("./b")]
    (small / "kam/collection.json").write_text(json.dumps(listed))
    cut(small, tmp_path)
    assert written_anew(before, marks(folder)) == {"kam/b"}
    index = pd.read_csv(folder / "index.csv")
    assert set(index["scene"]) == {"a", "c"}
    assert content(folder) == content(cut(small, tmp_path / "fresh"))
    shutil.copy(tmp_path / "collection.json", small / "kam/collection.json")
    cut(small, tmp_path)
    assert written_anew(before, marks(folder)) == {"kam/b"}
    assert content(folder) == whole


def test_the_order_of_items_and_the_number_of_processes_change_no_byte(tmp_path: Path, small: Path):
    folder = cut(small, tmp_path / "whole", workers=1, side_px=16)
    whole = content(folder)
    places = [tuple(map(int, tile.split("_r")[1].split("_c"))) for tile in pd.read_csv(folder / "index.csv")["tile"]]
    assert places[:30] == sorted(places[:30])  # row by row, whichever block has ended first
    assert len(whole) > 3 * 4 * 2  # of several blocks a scene
    for file in small.glob("**/c*.json"):
        listed = json.loads(file.read_text())
        listed["links"] = listed.get("links", [])[::-1]
        file.write_text(json.dumps(listed))
    for workers in (2, 3):
        assert content(cut(small, tmp_path / str(workers), workers=workers, side_px=16)) == whole


def test_a_scene_out_of_reach_keeps_its_tiles(tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch):
    """A server that does not answer today is no reason to throw away what was cut yesterday."""
    folder = cut(small, tmp_path)
    whole, before = content(folder), marks(folder)
    original = jobs.fingerprint

    def failing(href: str) -> str:
        if href.endswith("b.tif"):
            raise KitError(f"{href}: the server answers 503", "try again later")
        return original(href)

    with monkeypatch.context() as patch, pytest.raises(CutError, match=r"first kam/b: .*503") as caught:
        patch.setattr(jobs, "fingerprint", failing)
        cut(small, tmp_path)
    assert len(caught.value.prepared.index) == 27 - len(pd.read_csv(folder / "skipped.csv"))
    cut(small, tmp_path)
    assert marks(folder) == before
    assert content(folder) == whole


def test_a_contact_sheet_of_a_part_is_drawn_again(tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch):
    whole = content(cut(small, tmp_path / "whole"))
    cut_block = jobs.cut_block

    def failing(block: Block) -> Cut:
        made = cut_block(block)
        if block.scene.scene == "a":
            gone = max(made.tiles, key=lambda tile: tile.building_fraction)
            made.tiles.remove(gone)
            made.failed.append(Failed(gone.tile, "the server answers 503"))
        return made

    with monkeypatch.context() as patch, pytest.raises(CutError, match="1 of 27 tiles could not be cut"):
        patch.setattr(jobs, "cut_block", failing)
        cut(small, tmp_path)
    assert content(cut(small, tmp_path)) == whole


def test_only_known_scenes_are_cut_again(tmp_path: Path, small: Path, cli: Cli):
    code, _, err = cli("prepare", small, "--root", tmp_path, "--side", 32, "--scene", "kam/bb")
    assert code == 1
    assert "error: no scene 'kam/bb' to cut again" in err
    assert "did you mean 'kam/b'?" in err


def test_one_scene_alone_can_be_cut_first(tmp_path: Path, small: Path):
    folder = cut(small, tmp_path, only=["kam/a"])
    assert set(pd.read_csv(folder / "index.csv")["scene"]) == {"a"}
    before = marks(folder)
    cut(small, tmp_path)
    assert written_anew(before, marks(folder)) == {"kam/b", "znz/c"}
    assert content(folder) == content(cut(small, tmp_path / "fresh"))


def test_files_without_a_record_are_not_trusted(tmp_path: Path, small: Path):
    folder = cut(small, tmp_path)
    whole, before = content(folder), marks(folder)
    (folder / "scenes/kam/a.json").write_text("{")
    cut(small, tmp_path)
    assert written_anew(before, marks(folder)) == {"kam/a"}
    assert content(folder) == whole
    (folder / "scenes/kam/b.json").unlink()  # whose tiles are these now?
    with pytest.raises(OutputError, match=r"images/kam/b was not written by kit prepare"):
        cut(small, tmp_path)
    assert (folder / "images/kam/b").is_dir()


def test_scenes_whose_tiles_would_share_names_are_told_before_cutting(tmp_path: Path):
    catalog = write_catalog(tmp_path / "c", {"a_b": {"c": {}}, "a": {"b_c": {"seed": 1}}})
    with pytest.raises(DataError, match="the tiles of a/b_c and a_b/c would have the same names"):
        cut(catalog, tmp_path)
    assert not list((tmp_path / "data").rglob("*.tif"))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("where", ["masks", "scenes", "sheets", "images"])
def test_a_full_disk_is_told_with_its_remedy(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch, where: str, workers: int
):
    """Whatever is written when it is full; with the same command, it goes on."""
    whole = content(cut(small, tmp_path / "whole"))
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if f"/{where}/kam/" in str(self) and (where != "scenes" or b'"done": true' in data):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    with monkeypatch.context() as patch, pytest.raises(KitError, match=r"cannot write .*: No space left") as caught:
        patch.setattr(Path, "write_bytes", full)
        cut(small, tmp_path, workers=workers)
    assert "free some space" in caught.value.hint
    folder = tmp_path / "data/train_tier_1"
    assert not (folder / "index.csv").exists()
    before = marks(folder)
    cut(small, tmp_path)
    assert all(marks(folder)[file] == mark for file, mark in before.items() if file.startswith("masks"))
    assert content(folder) == whole


def test_two_commands_do_not_share_a_data_set(tmp_path: Path, small: Path, cli: Cli):
    from kit.system.files import locked

    with locked(Paths(tmp_path).data("train_tier_1")):
        process = subprocess.run(
            command(small, tmp_path), env=environment(), capture_output=True, text=True, timeout=100, check=False
        )
    assert process.returncode == 1
    assert "another process writes" in process.stderr


def command(catalog: Path, root: Path, *options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "kit", "prepare", str(catalog), "--root", str(root), "--grid", "native"),
        *("--side", "32", *options),
    ]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(kit.__file__).parents[1])}


def members(session: int) -> list[int]:
    """Returns the living processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):
            state, _, _, number = stat.read_text().rsplit(") ", 1)[1].split()[:4]
            if int(number) == session and state != "Z":
                found.append(int(stat.parent.name))
    return found


def wait_until(done: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Two scenes of 30 x 30 tiles."""
    options = {"width": 960, "height": 950}
    return write_catalog(tmp_path / "train_tier_1", {"kam": {"a": options, "b": {**options, "seed": 1}}})


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("group", [False, True])
def test_sigkill_at_random_points(tmp_path: Path, large: Path, group: bool):
    """The command alone is killed, or its processes with it."""
    whole = content(cut(large, tmp_path / "whole", workers=1))
    random.seed(int(group))
    root = tmp_path / "root"
    folder = root / "data/train_tier_1"
    done: dict[str, tuple[int, int]] = {}
    kills = 0
    for _ in range(12):
        process = subprocess.Popen(
            command(large, root, "--workers", "2"), env=environment(), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        target = len(done) + random.randrange(1, 900)
        finished = wait_until(lambda: process.poll() is not None or len(marks(folder)) > target, 120)  # noqa: B023
        assert finished
        (os.killpg if group else os.kill)(process.pid, signal.SIGKILL) if process.poll() is None else None
        process.wait()
        assert wait_until(lambda: not members(process.pid), 3), "a process outlives the command"  # noqa: B023
        now = marks(folder)
        assert all(now.get(file) == mark for file, mark in done.items())
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        kills += 1
        done = {file: mark for file, mark in now.items() if file.replace("images", "masks", 1) in now}
    assert process.returncode == 0
    assert kills >= 2
    assert content(folder) == whole


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_worker_changes_nothing(tmp_path: Path, large: Path):
    whole = content(cut(large, tmp_path / "whole", workers=1))
    root = tmp_path / "root"
    process = subprocess.Popen(
        command(large, root, "--workers", "2"), env=environment(), start_new_session=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert wait_until(lambda: len(marks(root / "data/train_tier_1")) > 20, 60)
    os.kill(next(member for member in members(process.pid) if member != process.pid), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert content(root / "data/train_tier_1") == whole
    assert not members(process.pid)


def test_labels_that_are_emptied_are_cut_again(tmp_path: Path, small: Path):
    folder = cut(small, tmp_path)
    before = marks(folder)
    write_footprints(small / "znz/c-labels/c.geojson", [])
    cut(small, tmp_path)
    assert written_anew(before, marks(folder)) == {"znz/c"}
    index = pd.read_csv(folder / "index.csv")
    assert not index["building_fraction"][index["scene"] == "c"].any()


def test_a_killed_write_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_bytes(tmp_path / "deep/er/x.tif", b"whole")
    assert (tmp_path / "deep/er/x.tif").read_bytes() == b"whole"
    kill_at(monkeypatch, 0)
    with pytest.raises(Killed):
        write_bytes(tmp_path / "deep/er/x.tif", b"another")
    assert (tmp_path / "deep/er/x.tif").read_bytes() == b"whole"


DAMAGE: dict[str, Callable[[str], str]] = {
    "cut short": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "a list": lambda text: "[]",
    "nested": lambda text: "[" * 100_000,
    "a field is missing": lambda text: text.replace('"key"', '"kee"', 1),
    "a number is text": lambda text: text.replace('"width_px": 32', '"width_px": "32"', 1),
    "a number is null": lambda text: text.replace('"gsd_m": ', '"gsd_m": null, "x": ', 1),
    "a number is infinite": lambda text: text.replace('"gsd_m": ', '"gsd_m": 1e999, "x": ', 1),
    "tiles are a number": lambda text: text.replace('"skipped": [', '"skipped": 3, "y": [', 1),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record_is_reported_and_its_scene_cut_again(
    tmp_path: Path, small: Path, capsys: pytest.CaptureFixture[str], damage: str
):
    folder = cut(small, tmp_path)
    before = content(folder)
    file = folder / "scenes/kam/a.json"
    changed = DAMAGE[damage](file.read_text())
    assert changed != file.read_text()
    file.write_text(changed)
    again = prepare(small, Paths(tmp_path), **STYLE)
    assert again.kept == 2
    assert content(folder) == before
    original = capsys.readouterr().err
    assert "scenes/kam/a.json is" in original
    assert "kam/a is cut again" in original
    if damage == "a number is text":
        assert "field cut.tiles.0.width_px: Input should be a valid integer, not '32'" in original


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"style": 3, "by": "scene", "k": 2}', '{"by": "scene", "k": null}'])
def test_damaged_settings_make_the_index_again(tmp_path: Path, small: Path, damage: str):
    folder = cut(small, tmp_path)
    before = content(folder)
    (folder / "settings.json").write_text(damage)
    assert prepare(small, Paths(tmp_path), **STYLE).kept == 3
    assert content(folder) == before


def test_a_record_says_where_image_and_labels_lie(small: Path, tmp_path: Path):
    folder = cut(small, tmp_path)
    record = Ledger(folder).read("kam", "a")
    assert record
    assert Path(record.image).is_absolute()
    assert [Path(file).suffix for file in (record.image, *record.labels)] == [".tif", ".geojson"]
    assert all(Path(file).is_file() for file in (record.image, *record.labels))


def test_an_older_record_learns_where_its_inputs_lie(small: Path, tmp_path: Path):
    folder = cut(small, tmp_path)
    ledger, before = Ledger(folder), content(folder)
    record = ledger.read("kam", "a")
    assert record
    ledger.write(replace(record, image="", labels=[], where=""))
    cut(small, tmp_path)
    assert content(folder) == before
