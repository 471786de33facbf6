import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kit.data.sources.coco import DrawnMask, decode_counts, read_coco
from kit.data.sources.source import read_source
from kit.data.tiles.cutting import Style
from kit.data.tiles.options import PrepareOptions
from kit.data.tiles.prepare import prepare
from kit.errors import DataError
from kit.paths import Paths

WIDTH, HEIGHT = 40, 32
SQUARE = [[4.0, 6.0, 14.0, 6.0, 14.0, 16.0, 4.0, 16.0]]  # 10 x 10 px
# the mask with rows 5..8 of columns 10..14, as pycocotools 2.0 compresses it
MASK = np.zeros((HEIGHT, WIDTH), np.uint8)
MASK[5:9, 10:15] = 1
COUNTS = [325, 4, *[28, 4] * 4, 823]
COMPRESSED = "U:4l00000000kh0"


def compress(counts: list[int]) -> str:
    """Returns run lengths in COCO's compressed form, written from its description."""
    text = ""
    for at, count in enumerate(counts):
        value = count - counts[at - 2] if at > 2 else count
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(bits + 48 + 32 * more)
    return text


def write(folder: Path, names: list[str], annotations: list[dict], name: str = "annotations.json", **more) -> Path:
    """Writes pictures and a COCO file about them."""
    for image in names:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 70)).save(folder / image)
    images = [{"id": n, "file_name": Path(i).name, "width": WIDTH, "height": HEIGHT} for n, i in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "building"}]} | more
    (folder / name).write_text(json.dumps(content))
    return folder


def part(image: object, segmentation: object, category: int = 1) -> dict:
    return {"id": 1, "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": 0}


def rle(counts: object) -> dict:
    return {"size": [HEIGHT, WIDTH], "counts": counts}


def test_polygons_and_both_kinds_of_run_lengths(tmp_path: Path):
    names = ["polygon.png", "runs.png", "compressed.png", "several.png", "none.png"]
    parts = [part(0, SQUARE), part(1, rle(COUNTS)), part(2, rle(COMPRESSED)), part(3, SQUARE), part(3, rle(COUNTS))]
    found = read_coco(write(tmp_path, names, parts) / "annotations.json")
    square = np.zeros_like(MASK)
    square[6:16, 4:14] = 1
    expected = [square, MASK, MASK, square | MASK, MASK * 0]
    for name, mask in zip(names, expected, strict=True):
        np.testing.assert_array_equal(found[name].mask(), mask)
        assert found[name].mask().dtype == np.uint8


@given(st.lists(st.integers(0, 70_000), min_size=1, max_size=30))
def test_compressed_counts_are_read_back(counts: list[int]):
    assert decode_counts(compress(counts)) == counts


def test_outlines_that_cross_themselves_are_filled():
    bow_tie = DrawnMask(20, 20, ((0, 0, 20, 20, 20, 0, 0, 20),)).mask()
    assert bow_tie.sum() == pytest.approx(200, abs=20)


LAYOUTS = [
    ["a.png", "b.png"],
    ["images/a.png", "images/b.png"],
    ["images/north/a.png", "images/south/b.png"],
]


@pytest.mark.parametrize("names", LAYOUTS)
def test_images_are_found_beside_and_below(tmp_path: Path, names: list[str]):
    source = read_source(write(tmp_path / "city", names, [part(0, SQUARE)]))
    assert [(pair.name, pair.drawing.mask().sum()) for pair in source.pairs] == [("a", 100), ("b", 0)]
    assert source.scenes == ()


def test_each_folder_may_have_its_own_file(tmp_path: Path):
    """As Roboflow exports: train/_annotations.coco.json, with images of one name in both."""
    for split in ("train", "valid"):
        square = [[x + (split == "valid") for x in SQUARE[0]]]
        write(tmp_path / "city" / split, ["a.png"], [part(0, square)], "_annotations.coco.json")
    pairs = read_source(tmp_path / "city").pairs
    assert [(pair.scene, int(pair.drawing.mask()[6:16, 4:14].sum())) for pair in pairs] == [
        ("train", 100),
        ("valid", 81),
    ]


def test_paths_of_another_machine(tmp_path: Path):
    city = write(tmp_path / "city", ["north/a.png", "south/a.png"], [part(1, SQUARE)])
    content = json.loads((city / "annotations.json").read_text())
    for image, name in zip(content["images"], ["C:\\data\\north\\a.png", "/mnt/x/south/a.png"], strict=True):
        image["file_name"] = name
    (city / "annotations.json").write_text(json.dumps(content))
    assert [pair.drawing.mask().sum() for pair in read_source(city).pairs] == [0, 100]


def test_coco_files_are_cut(tmp_path: Path):
    city = write(tmp_path / "city", ["images/a.png", "images/b.png"], [part(0, SQUARE), part(1, rle(COMPRESSED))])
    options = PrepareOptions(by="tile", k=2, style=Style(side_px=64))
    index = prepare(city, Paths(tmp_path), options).index
    assert list(index["building_fraction"] * index["valid_fraction"] * index["width_px"] * index["height_px"]) == (
        pytest.approx([100, 20], abs=0.01)
    )
    with rasterio.open(tmp_path / "data/city" / index["mask"][1]) as source:
        np.testing.assert_array_equal(source.read(1)[:HEIGHT, :WIDTH], MASK)
    assert prepare(city, Paths(tmp_path), options).kept == 1
    one = PrepareOptions(by="tile", k=2, style=Style(side_px=64), where="category = 'tree'")
    assert not prepare(city, Paths(tmp_path), one).index["building_fraction"].any()


def test_sizes_that_differ_are_named(tmp_path: Path):
    city = write(tmp_path / "city", ["a.png"], [part(0, SQUARE)])
    Image.new("RGB", (HEIGHT, WIDTH)).save(city / "a.png")
    with pytest.raises(DataError, match=r"a\.png has 32 x 40 px, its mask .*annotations\.json 40 x 32"):
        prepare(city, Paths(tmp_path), PrepareOptions(by="tile", style=Style(side_px=64)))


def test_several_categories(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    kinds = {"categories": [{"id": 1, "name": "building"}, {"id": 2, "name": "road"}]}
    city = write(tmp_path / "city", ["a.png"], [part(0, SQUARE), part(0, rle(COUNTS), 2)], **kinds)
    file = city / "annotations.json"
    assert read_coco(file)["a.png"].mask().sum() > 100
    assert "all categories are taken as buildings: 'building' (1), 'road' (1); choose with" in capsys.readouterr().err
    assert read_coco(file, "category = 'building'")["a.png"].mask().sum() == 100
    assert capsys.readouterr().err == ""
    with pytest.raises(DataError, match=r"--where 'kind = 1' cannot be applied: no such column: kind"):
        read_coco(file, "kind = 1")


BROKEN = [
    ({"images": 3}, "field images: Input should be a valid array"),
    ({"annotations": [part(0, {"size": [HEIGHT, WIDTH]})]}, "field annotations.0.segmentation"),
    ({"annotations": [part(0, [[1.0, 2.0, 3.0]])]}, "an outline of 'a.png' is not a list of at least three x, y"),
    ({"annotations": [part(0, [[1.0] * 7])]}, "an outline of 'a.png' is not a list"),
    ({"annotations": [part(0, rle(COUNTS[:-1]))]}, "the run lengths of an annotation of 'a.png' do not fill the image"),
    ({"annotations": [part(0, rle([-5, 5 + WIDTH * HEIGHT]))]}, "do not fill the image"),
    ({"annotations": [part(0, rle("~~~"))]}, "is not a compressed list of run lengths"),
    ({"annotations": [part(0, rle("PP"))]}, "incomplete list"),
    ({"annotations": [part(0, [])]}, "1 of 1 annotations have no outline, first of image 0: boxes are"),
    ({"annotations": [part(7, SQUARE)]}, "1 annotations have no image, first of image 7"),
    ({"images": [{"id": n, "file_name": "a.png", "width": 9, "height": 9} for n in range(2)]}, "1 images are listed"),
    ({"images": [{"id": 0, "file_name": "a.png", "width": 10**6, "height": 10**6}], "annotations": []}, "has 1,0"),
    ({"images": [{"id": 0, "file_name": "a.png", "width": -1, "height": 1}]}, "field images.0.width"),
    ({"images": [{"id": 0, "file_name": "gone.png", "width": 9, "height": 9}], "annotations": []},
     "1 of its images are missing, first 'gone.png'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=lambda value: value[:40] if isinstance(value, str) else "")
def test_broken_files_are_one_error(tmp_path: Path, change: dict, message: str):
    city = write(tmp_path / "city", ["a.png"], [part(0, SQUARE)])
    content = json.loads((city / "annotations.json").read_text()) | change
    (city / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        read_source(city)
    assert message in caught.value.message


def test_an_image_with_annotations_and_a_mask_is_an_error(tmp_path: Path):
    city = write(tmp_path / "city", ["a.png", "b.png"], [part(0, SQUARE)])
    Image.new("L", (WIDTH, HEIGHT)).save(city / "a_mask.png")
    with pytest.raises(
        DataError, match=r"several files for one image or its labels: a\.png, a_mask\.png, annotations\.json"
    ):
        read_source(city)


def test_names_that_fit_two_images_are_an_error(tmp_path: Path):
    city = write(tmp_path / "city", ["north/a.png", "south/a.png"], [])
    content = json.loads((city / "annotations.json").read_text())
    (city / "annotations.json").write_text(json.dumps(content | {"images": content["images"][:1]}))
    with pytest.raises(DataError, match=r"'a\.png' is north/a\.png or south/a\.png"):
        read_source(city)


OTHERS = {
    "a.json": ({"version": "5.0", "shapes": [{"points": []}], "imagePath": "a.png"}, "labelme"),
    "via.json": ({"_via_settings": {}, "_via_img_metadata": {}}, "VIA"),
    "old_via.json": ({"a.png1": {"filename": "a.png", "regions": [{"shape_attributes": {}}]}}, "VIA"),
    "export.json": ([{"annotations": [{"result": [{"from_name": "label", "to_name": "image"}]}]}], "Label Studio"),
    "a.xml": ("<annotation><object><bndbox/></object></annotation>", "Pascal VOC or CVAT"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_annotation_tools_are_named(tmp_path: Path, name: str):
    content, tool = OTHERS[name]
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(
        DataError, match=rf"{name} is a file of {tool}.*, which is not read; 1 images have no"
    ) as caught:
        read_source(tmp_path)
    assert "COCO" in caught.value.hint
    Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / "a_mask.png")  # labels enough: such a file is no matter
    assert len(read_source(tmp_path).pairs) == 1


def test_annotations_in_a_table_are_refused(tmp_path: Path):
    city = write(tmp_path / "city", ["a.png"], [part(0, SQUARE)])
    (city / "list.csv").write_text("image,mask\na.png,annotations.json")
    with pytest.raises(DataError, match=r"1 masks are \.json files, first line 2") as caught:
        read_source(city / "list.csv")
    assert "kit prepare FOLDER" in caught.value.hint
