"""`kit check-submission`: one mark a check, each made to fail; what differs from an earlier submission."""

import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from deploy_fakes import noise, write_tiff

from kit.data.index import building_share
from kit.data.masks import count
from kit.data.sources.chips import Chip, find_chips
from kit.deploy.submission.checks import CheckedSubmission, check, check_submission
from kit.errors import DataError, SubmissionError
from kit.paths import Paths

Cli = Callable[..., tuple[int, str, str]]
ALL = ["names", "flat", "readable", "bands", "type", "values", "sizes", "buildings", "empty"]


def mask(seed: int = 0, height: int = 20, width: int = 30) -> np.ndarray:
    return (noise(height, width, 1, seed)[..., 0] > 128).astype(np.uint8)


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """Masks for the chips x, y and z, without fault; z is of another size."""
    for seed, name in enumerate("xyz"):
        size = (20, 30) if name != "z" else (33, 17)
        write_tiff(tmp_path / "images" / f"{name}.tif", noise(*size))
        write_tiff(tmp_path / "masks" / f"{name}.tif", mask(seed, *size))
    return tmp_path / "masks"


@pytest.fixture
def chips(masks: Path) -> list[Chip]:
    return find_chips(masks.parent / "images")


def packed(folder: Path, kind: str, prefix: str = "") -> Path:
    """All of a folder as an archive, with its folders."""
    path = folder.with_suffix(kind)
    if kind == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(folder.rglob("*")):
                archive.write(file, prefix + str(file.relative_to(folder)))
    else:
        with tarfile.open(path, "w:gz") as tarred:
            for file in sorted(folder.iterdir()):
                tarred.add(file, prefix + file.name)
    return path


def marks(checked: CheckedSubmission) -> dict[str, str]:
    """The checks that are not ok."""
    return {row.name: row.mark for row in checked.checks if row.mark != "ok"}


def found(checked: CheckedSubmission, name: str) -> str:
    """What the row of a check says."""
    (row,) = [row for row in checked.checks if row.name == name]
    return row.cells()[2]


@pytest.mark.parametrize("kind", ["", ".zip", ".tgz"])
def test_nothing_is_wrong(masks: Path, chips: list[Chip], kind: str):
    path = packed(masks, kind) if kind else masks
    for images in (chips, None):
        checked = check(path, images)
        assert [row.name for row in checked.checks] == ALL
        assert marks(checked) == {}
        assert checked.faults() == []
    summary = check(path, chips).require()
    building = sum(int(mask(seed, *size).sum()) for seed, size in enumerate([(20, 30), (20, 30), (33, 17)]))
    assert (summary.path, summary.chips, summary.empty) == (path, 3, 0)
    assert summary.building_fraction == pytest.approx(building / (1200 + 33 * 17))
    assert found(check(path, chips), "sizes") == "2 of 30 x 20 px, 1 of 17 x 33 px, as their chips"
    assert found(check(path), "sizes") == "2 of 30 x 20 px, 1 of 17 x 33 px"


@pytest.mark.parametrize(
    ("spoil", "name", "fault"),
    [
        (lambda m: (m / "x.tif").unlink(), "names", "x.tif is missing"),
        (lambda m: write_tiff(m / "w.tif", mask()), "names", "w.tif is not <chip>.tif of the test set"),
        (lambda m: write_tiff(m / "x.tif", noise(20, 30)), "bands", "x.tif has 3 bands, expected 1"),
        (lambda m: write_tiff(m / "x.tif", mask().astype(np.int32)), "type", "x.tif is int32, expected uint8"),
        (lambda m: write_tiff(m / "x.tif", mask() * 255), "values", "x.tif holds the value 255, expected 0 and 1"),
        (lambda m: write_tiff(m / "x.tif", mask(0, 30, 20)), "sizes", "x.tif is 20 x 30 px, its chip 30 x 20"),
        (lambda m: (m / "x.tif").write_bytes(b""), "readable", "x.tif is empty, expected a TIFF"),
        (lambda m: (m / "x.tif").write_bytes(b"GIF89a"), "readable", "x.tif is not a readable TIFF"),
        (lambda m: (m / "x.tif").write_bytes((m / "x.tif").read_bytes()[:90]), "readable", "x.tif is not a readable"),
        (lambda m: (m / "._x.tif").write_bytes(b"x"), "flat", "._x.tif is not <chip>.tif"),
        (lambda m: (m / ".DS_Store").write_bytes(b"x"), "flat", ".DS_Store is not <chip>.tif"),
        (lambda m: (m / "x.png").write_bytes(b"x"), "flat", "x.png is not <chip>.tif"),
        (lambda m: write_tiff(m / "deep/w.tif", mask()), "flat", "deep is a folder"),
    ],
)
@pytest.mark.parametrize("kind", [".zip", ".tgz"])
def test_each_fault_has_its_check(masks: Path, chips: list[Chip], spoil, name: str, fault: str, kind: str):
    spoil(masks)
    checked = check(packed(masks, kind), chips)
    assert marks(checked) == {name: "wrong"}
    assert fault in found(checked, name)
    with pytest.raises(SubmissionError, match=r"has \d faults?:\n") as error:
        checked.require()
    assert fault in error.value.message


def test_several_faults_of_one_mask_and_many_of_one_check(masks: Path, chips: list[Chip]):
    write_tiff(masks / "x.tif", noise(9, 9).astype(np.uint16))
    write_tiff(masks / "y.tif", noise(20, 30))
    checked = check(masks, chips)
    assert marks(checked) == {"bands": "wrong", "type": "wrong", "sizes": "wrong"}
    assert found(checked, "bands") == "x.tif has 3 bands, expected 1 (and 1 more)"
    assert checked.summary.chips == 1
    assert len(checked.faults()) == 4


def test_a_folder_of_kit_s_own_is_clean(masks: Path, chips: list[Chip]):
    """What a submission under way holds beside its masks is not handed in."""
    for name in ("submission.csv", "rle.csv", ".progress.csv", ".x.1.part.tif"):
        (masks / name).write_bytes(b"x")
    assert marks(check(masks, chips)) == {}
    (masks / "notes.txt").write_bytes(b"x")
    (masks / "link.tif").symlink_to(masks / "x.tif")
    (masks / "deep").mkdir()
    strays = next(row for row in check(masks, chips).checks if row.name == "flat").faults
    assert strays == ("deep is a folder", "link.tif is a link", "notes.txt is not <chip>.tif")


def test_folders_in_an_archive(masks: Path, chips: list[Chip]):
    checked = check(packed(masks, ".tgz", "masks/"), chips)
    assert marks(checked) == {"names": "wrong", "flat": "wrong"}
    assert found(checked, "flat") == "masks/x.tif lies in a folder (and 2 more)"
    assert marks(check(packed(masks, ".tgz", "./"))) == {"names": "wrong", "flat": "wrong"}


def test_a_doubled_name_without_a_test_set(masks: Path):
    path = packed(masks, ".tgz")
    with tarfile.open(path, "w:gz") as archive:
        for name in ("x.tif", "y.tif", "x.tif"):
            archive.add(masks / name, name)
    assert found(check(path), "names") == "x.tif occurs 2 times"


def test_nothing_at_all(tmp_path: Path):
    assert found(check(tmp_path), "names") == f"{tmp_path.name} holds no mask"


def test_a_mask_that_claims_to_be_huge(tmp_path: Path):
    """A sparse TIFF: some bytes on the disk, 10,000 megabytes once read."""
    import rasterio

    (tmp_path / "masks").mkdir()
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": 100_000, "width": 100_000, "tiled": True}
    with rasterio.open(tmp_path / "masks/x.tif", "w", **profile, sparse_ok=True, compress="deflate"):
        pass
    assert (tmp_path / "masks/x.tif").stat().st_size < 10_000_000
    checked = check(tmp_path / "masks")
    assert marks(checked) == {"sizes": "wrong"}
    assert "x.tif claims 100000 x 100000 px: more than a mask needs" in found(checked, "sizes")


def test_a_file_that_names_other_files_is_no_mask(tmp_path: Path):
    """GDAL would read a VRT of any name, and from it any file of this machine."""
    write_tiff(tmp_path / "secret.tif", mask())
    source = f"<SourceFilename>{tmp_path / 'secret.tif'}</SourceFilename>"
    band = f'<VRTRasterBand dataType="Byte" band="1"><SimpleSource>{source}</SimpleSource></VRTRasterBand>'
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/x.tif").write_text(f'<VRTDataset rasterXSize="30" rasterYSize="20">{band}</VRTDataset>')
    assert marks(check(tmp_path / "masks")) == {"readable": "wrong"}


def test_empty_masks(masks: Path, chips: list[Chip]):
    for name in "xy":
        write_tiff(masks / f"{name}.tif", np.zeros((20, 30), np.uint8))
    checked = check(masks, chips)
    assert marks(checked) == {}
    assert found(checked, "empty") == "2 of 3 without a building"
    write_tiff(masks / "z.tif", np.zeros((33, 17), np.uint8))
    assert marks(check(masks, chips)) == {"empty": "wrong"}
    assert check_submission(masks, chips).empty == 3  # `kit submit` need not find any


@pytest.mark.parametrize(
    ("share", "warned"), [(0.13, "more than 3 times"), (0.17, ""), (0.9, ""), (1.0, ""), (0.15, "more than 3 times")]
)
def test_far_more_building_than_in_training(masks: Path, chips: list[Chip], share: float, warned: str):
    checked = check(masks, chips, share=(share, "tier1"))  # about a half is building here
    assert 0.46 < checked.summary.building_fraction < 0.51
    assert marks(checked) == ({"buildings": "warning"} if warned else {})
    assert warned in found(checked, "buildings")
    assert f"{share:.1%} in training (tier1)" in found(checked, "buildings")
    checked.require()  # a warning is no fault


def test_far_less_building_than_in_training(masks: Path):
    for name in "xyz":
        write_tiff(masks / f"{name}.tif", np.pad(np.ones((2, 3), np.uint8), ((0, 18), (0, 27))))  # 1 %
    assert "less than a third of the share in training" in found(check(masks, share=(0.04, "a")), "buildings")
    assert marks(check(masks, share=(0.025, "a"))) == {}


def write_index(root: Path, name: str, tiles: list[tuple[int, float, float]]) -> None:
    """Writes an index of tiles: side, share of imagery, share of building."""
    rows = [
        {"tile": f"t{i}", "area": "a", "scene": "s", "crs": "", "image": f"i{i}", "mask": "m", "width_px": side,
         "height_px": side, "gsd_m": 0.1, "tier": 1, "fold": 0, "valid_fraction": valid,
         "building_fraction": building, "n_footprints": 1}
        for i, (side, valid, building) in enumerate(tiles)
    ]  # fmt: skip
    (root / "data" / name).mkdir(parents=True)
    pd.DataFrame(rows).to_csv(root / "data" / name / "index.csv", index=False)


def test_the_share_in_training_is_of_pixels_with_imagery(tmp_path: Path):
    assert building_share(Paths(tmp_path)) is None
    write_index(tmp_path, "one", [(10, 1.0, 0.5), (10, 0.5, 0.2)])
    write_index(tmp_path, "two", [(20, 0.25, 0.0)])
    assert building_share(Paths(tmp_path), "one") == (pytest.approx(60 / 150), "one")
    assert building_share(Paths(tmp_path)) == (pytest.approx(60 / 250), "one, two")
    with pytest.raises(DataError, match="no data set 'three'"):
        building_share(Paths(tmp_path), "three")


def test_agreement_with_an_earlier_submission(masks: Path, chips: list[Chip], tmp_path: Path):
    earlier = tmp_path / "earlier"
    first, second = mask(0), mask(1)
    second[:2] = 1 - second[:2]  # 60 pixels
    write_tiff(earlier / "x.tif", first)
    write_tiff(earlier / "y.tif", second)
    write_tiff(earlier / "z.tif", 1 - mask(2, 33, 17))
    checked = check(masks, chips, packed(earlier, ".zip"))
    counts = count(mask(1) == 1, second)
    expected = (counts.tp + int(first.sum())) / (counts.tp + counts.fp + counts.fn + int(first.sum()) + 33 * 17)
    equal = 1 - (60 + 33 * 17) / (1200 + 33 * 17)
    assert found(checked, "earlier") == (
        f"Jaccard {expected:.4f}, {equal:.2%} of the pixels equal, 3 chips in earlier.zip"
    )
    assert [(row.chip, row.jaccard, row.equal) for row in checked.differing] == [
        ("z", 0, 0), ("y", pytest.approx(counts.jaccard), pytest.approx(0.9))
    ]  # fmt: skip
    itself = check(masks, chips, masks)
    assert "Jaccard 1.0000, 100.00%" in found(itself, "earlier")
    assert itself.differing == ()


def test_no_more_than_ten_chips_are_listed_as_differing(tmp_path: Path):
    for number in range(13):
        write_tiff(tmp_path / "new" / f"c{number:02}.tif", mask(number))
        other = mask(number)
        other.flat[:number] ^= 1
        write_tiff(tmp_path / "old" / f"c{number:02}.tif", other)
    differing = check(tmp_path / "new", earlier=tmp_path / "old").differing
    assert [row.chip for row in differing] == [f"c{number:02}" for number in range(12, 2, -1)]


def test_earlier_submissions_of_other_chips_and_sizes(masks: Path, tmp_path: Path):
    write_tiff(tmp_path / "earlier/x.tif", mask())
    write_tiff(tmp_path / "earlier/y.tif", mask(0, 5, 5))
    write_tiff(tmp_path / "earlier/w.tif", mask())
    checked = check(masks, earlier=tmp_path / "earlier")
    assert marks(checked) == {"earlier": "warning"}
    for words in ("1 chips in earlier", "1 chips have other sizes", "1 chips only here, first z", "there, first w"):
        assert words in found(checked, "earlier")
    write_tiff(tmp_path / "strangers/v.tif", mask())
    assert "nothing in common with strangers" in found(check(masks, earlier=tmp_path / "strangers"), "earlier")
    with pytest.raises(SubmissionError, match="no folder or archive"):
        check(masks, earlier=tmp_path / "nowhere")


def test_the_command(masks: Path, tmp_path: Path, cli: Cli):
    path, images = packed(masks, ".tgz"), masks.parent / "images"
    code, out, err = cli("check-submission", path, "--test", images, "--root", tmp_path)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["check", "mark", "result"]
    assert [line.split()[:2] for line in lines[1:-1]] == [[name, "ok"] for name in ALL]
    assert lines[-1] == f"checked {path}"
    write_tiff(masks / "x.tif", mask(5))
    code, out, err = cli("check-submission", masks, "--against", path, "--json", "--root", tmp_path)
    assert (code, err) == (0, "")
    printed = json.loads(out)
    assert (printed["valid"], printed["chips"], printed["empty"]) == (True, 3, 0)
    assert [row["name"] for row in printed["checks"]] == [*ALL, "earlier"]
    assert [row["chip"] for row in printed["differing"]] == ["x"]
    code, out, _ = cli("check-submission", masks, "--against", path, "--root", tmp_path)
    assert out.splitlines()[-2].split()[0] == "x"


def test_the_command_exits_1_where_something_is_wrong(masks: Path, tmp_path: Path, cli: Cli):
    (masks / "x.tif").write_bytes(b"no")
    for options in ((), ("--json",)):
        code, out, err = cli("check-submission", masks, "--root", tmp_path, *options)
        assert code == 1
        assert err.startswith(f"error: {masks} has 1 fault:\n  x.tif is not a readable TIFF\nhint:  ")
        assert "wrong" in out
        assert "checked" not in out
    assert json.loads(out)["valid"] is False
    code, out, err = cli("check-submission", tmp_path / "nowhere.tgz", "--root", tmp_path)
    assert (code, out) == (1, "")
    assert "no folder or archive" in err


def test_the_command_compares_with_the_data_of_its_root(masks: Path, tmp_path: Path, cli: Cli):
    write_index(tmp_path, "one", [(10, 1.0, 0.05)])
    write_index(tmp_path, "two", [(10, 1.0, 0.45)])
    for options, said in (((), "25.0% in training (one, two)"), (("--data", "one"), "more than 3 times the share")):
        code, out, _ = cli("check-submission", masks, "--root", tmp_path, *options)
        assert code == 0
        assert said in out
    code, _, err = cli("check-submission", masks, "--root", tmp_path, "--data", "other")
    assert code == 1
    assert "no data set 'other'" in err
