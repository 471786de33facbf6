import os
import re
from pathlib import Path

import pytest
from factories import write_catalog
from web import Web

from kit.data.sources.inputs import Pair, Scene
from kit.data.sources.source import read_source
from kit.errors import CatalogError, DataError


def touch(root: Path, *names: str) -> Path:
    """Makes files that are told by their names alone."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text('{"type": "FeatureCollection"}' if name.endswith(".json") else "")
    return root


def listed(root: Path, **options) -> list[tuple[str, ...]]:
    """Returns area, scene (and name) with the files of all that is read, relative to the root."""
    source = read_source(root, **options)
    found = [(s.area, s.scene, *(os.path.relpath(file, root) for file in (s.image, *s.labels))) for s in source.scenes]
    return found + [
        (p.area, p.scene, p.name, *(os.path.relpath(file, root) for file in (p.image, p.mask))) for p in source.pairs
    ]


def test_a_catalogue_is_a_source(catalog: Path):
    source = read_source(catalog)
    assert (source.name, len(source.scenes), source.pairs) == ("train_tier_1", 3, ())
    assert read_source(str(catalog / "catalog.json")) == source
    assert read_source(catalog.as_uri()) == source


@pytest.mark.parametrize(("tier", "expected"), [(0, 2), (1, 1), (2, 2)])
def test_the_tier_is_the_catalogues_unless_given(tmp_path: Path, tier: int, expected: int):
    root = write_catalog(tmp_path / "c", {"kam": {"a": {}}})
    file = root / "catalog.json"
    file.write_text(file.read_text().replace("train_tier_1", "train_tier_2"))
    assert [scene.tier for scene in read_source(root, tier=tier).scenes] == [expected]


def test_the_tier_of_a_folder_is_one_unless_given(tmp_path: Path):
    root = touch(tmp_path, "a.tif", "a.geojson", "b.png", "b_mask.png")
    for tier, expected in ((0, 1), (2, 2)):
        source = read_source(root, tier=tier)
        assert [part.tier for part in (*source.scenes, *source.pairs)] == [expected, expected]


def test_a_catalogue_takes_no_pattern(catalog: Path):
    with pytest.raises(DataError, match="no pattern applies"):
        read_source(catalog, pattern="(?P<area>.)")


def test_nothing_there_is_an_error(tmp_path: Path):
    with pytest.raises(CatalogError, match="no STAC catalogue at"):
        read_source(tmp_path / "nowhere")


FOLDERS = [
    (["a.tif", "a.geojson"], [("city", "a", "a.tif", "a.geojson")]),
    (["kam/a.tif", "kam/a.gpkg", "znz/a.TIF", "znz/a.shp"],
     [("kam", "a", "kam/a.tif", "kam/a.gpkg"), ("znz", "a", "znz/a.TIF", "znz/a.shp")]),
    (["images/a.tiff", "labels/a.json"], [("city", "a", "images/a.tiff", "labels/a.json")]),
    (["kam/images/a.tif", "kam/labels/a.fgb"], [("kam", "a", "kam/images/a.tif", "kam/labels/a.fgb")]),
    (["images/kam/a.tif", "labels/kam/a.fgb"], [("kam", "a", "images/kam/a.tif", "labels/kam/a.fgb")]),
    (["2019/kam/a.tif", "2019/kam/a.fgb"], [("2019-kam", "a", "2019/kam/a.tif", "2019/kam/a.fgb")]),
    (["a b/x y.tif", "a b/x y.fgb"], [("a-b", "x-y", "a b/x y.tif", "a b/x y.fgb")]),
    (["images/b.png", "masks/b.png", "images/a.jpg", "masks/a.png"],
     [("city", "city", "a", "images/a.jpg", "masks/a.png"), ("city", "city", "b", "images/b.png", "masks/b.png")]),
    (["Image/a.tif", "Mask/a.tif"], [("city", "city", "a", "Image/a.tif", "Mask/a.tif")]),
    (["img/a.jpeg", "gt/a.webp"], [("city", "city", "a", "img/a.jpeg", "gt/a.webp")]),
    (["a.png", "masks/a.png"], [("city", "city", "a", "a.png", "masks/a.png")]),
    (["a.png", "a_mask.png"], [("city", "city", "a", "a.png", "a_mask.png")]),
    (["images/a.png", "masks/a_mask.png"], [("city", "city", "a", "images/a.png", "masks/a_mask.png")]),
    (["images/a_mask.png", "masks/a.png"], None),  # an image is what lies with the images
    (["train/images/a.png", "train/masks/a.png"], [("city", "train", "a", "train/images/a.png", "train/masks/a.png")]),
    (["images/kam/a.png", "masks/kam/a.png"], [("city", "kam", "a", "images/kam/a.png", "masks/kam/a.png")]),
    (["train/a.tif", "train_labels/a.tif"], [("city", "train", "a", "train/a.tif", "train_labels/a.tif")]),
    (["kam/x/1/a.png", "kam/x/1/a_mask.png"], [("city", "kam", "x-1-a", "kam/x/1/a.png", "kam/x/1/a_mask.png")]),
    (["c/a.tif", "c/a.geojson", "images/b.png", "masks/b.png"],
     [("c", "a", "c/a.tif", "c/a.geojson"), ("city", "city", "b", "images/b.png", "masks/b.png")]),
    (["images/東区.tif", "labels/東区.geojson", "images/西区.tif", "labels/西区.geojson"],
     [("city", "東区", "images/東区.tif", "labels/東区.geojson"),
      ("city", "西区", "images/西区.tif", "labels/西区.geojson")]),
    (["Su\u0308d/a.tif", "Su\u0308d/a.fgb"], [("S\u00fcd", "a", "Su\u0308d/a.tif", "Su\u0308d/a.fgb")]),
    (["images/u\u0308.tif", "labels/\u00fc.fgb"], [("city", "\u00fc", "images/u\u0308.tif", "labels/\u00fc.fgb")]),
    (["a.tif", "a.geojson", ".b.tif", ".cache/c.tif", "__MACOSX/d.tif", "read.me", "a.tif.aux.xml", "a.prj"],
     [("city", "a", "a.tif", "a.geojson")]),
]  # fmt: skip


@pytest.mark.parametrize(("files", "expected"), FOLDERS, ids=lambda value: value[0] if value else "")
def test_folders_of_every_layout(tmp_path: Path, files: list[str], expected: list[tuple[str, ...]] | None):
    root = touch(tmp_path / "city", *files)
    if expected is None:
        with pytest.raises(DataError, match=r"1 images have no labels, first .*; 1 labels have no image"):
            listed(root)
    else:
        assert listed(root) == expected
        assert read_source(root).name == "city"


def test_json_that_is_no_geojson_is_left_alone(tmp_path: Path):
    root = touch(tmp_path / "city", "a.tif", "a.geojson")
    (root / "a.json").write_text('{"type": "Feature", "id": "a"}')
    (root / "info.json").write_text("{}")
    assert listed(root) == [("city", "a", "a.tif", "a.geojson")]


def test_large_json_whose_type_stands_last_is_a_geojson(tmp_path: Path):
    root = touch(tmp_path / "city", "a.tif")
    (root / "a.json").write_text('{"features": [' + " " * (1 << 18) + '], "type": "FeatureCollection"}')
    assert listed(root) == [("city", "a", "a.tif", "a.json")]


@pytest.mark.parametrize("name", [b"images/\xff.tif", b"\xff/a.png"])
def test_names_that_are_no_text_are_one_error(tmp_path: Path, name: bytes):
    touch(tmp_path, os.fsdecode(name))
    with pytest.raises(DataError, match=r"the name b'.*\\xff.*' is not UTF-8"):
        read_source(tmp_path)


def test_pipes_and_broken_links_are_named(tmp_path: Path):
    root = touch(tmp_path, "a.tif")
    os.mkfifo(root / "a.geojson")
    with pytest.raises(DataError, match=r"a\.geojson is not a regular file"):
        read_source(root)
    (root / "a.geojson").unlink()
    (root / "a.geojson").symlink_to("gone.geojson")
    with pytest.raises(DataError, match=r"a\.geojson is not a regular file"):
        read_source(root)


def test_a_condition_reaches_every_scene(tmp_path: Path):
    (scene,) = read_source(touch(tmp_path, "a.tif", "a.gpkg"), where="kind = 'building'").scenes
    assert scene.where == "kind = 'building'"


def test_linked_folders_are_read_once(tmp_path: Path):
    root = touch(tmp_path / "city", "kam/a.tif", "kam/a.geojson")
    touch(tmp_path / "disk", "b.tif", "b.geojson")
    (root / "znz").symlink_to(tmp_path / "disk")
    (root / "kam" / "back").symlink_to(root)
    assert [(area, scene) for area, scene, *_ in listed(root)] == [("kam", "a"), ("znz", "b")]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"^(?P<area>[a-z]+)(?P<scene>\d+)_", [("kam", "12", "kam12_3"), ("znz", "7", "znz7_1")]),
        (r"/(?P<area>[a-z]+)", [("kam", "city", "kam12_3"), ("znz", "city", "znz7_1")]),
        (r"(?P<scene>[a-z]+\d+)", [("city", "kam12", "kam12_3"), ("city", "znz7", "znz7_1")]),
        (r"(?P<area>ka)?(?P<scene>.\d)", [("city", "z7", "znz7_1"), ("ka", "m1", "kam12_3")]),
    ],
)
def test_a_pattern_finds_area_and_scene(tmp_path: Path, pattern: str, expected: list[tuple[str, ...]]):
    root = touch(
        tmp_path / "city", *(f"{kind}/{name}.png" for kind in ("images", "masks") for name in ("kam12_3", "znz7_1"))
    )
    pattern = pattern.replace("^", "^images/")
    assert [parts[:3] for parts in listed(root, pattern=pattern)] == expected


def test_a_pattern_names_scenes_with_footprints_too(tmp_path: Path):
    root = touch(tmp_path / "city", "x/kam_1.tif", "x/kam_1.gpkg")
    assert listed(root, pattern="(?P<area>kam)_(?P<scene>.+)$")[0][:2] == ("kam", "1")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(?P<area>nia)", "does not match 'kam/a'"),
        ("(?P<area>", "is not a regular expression"),
        ("kam", "has no group `area` or `scene`"),
        ("(?P<town>kam)", "has no group `area` or `scene`"),
        (r"\.tif(?P<area>)", "does not match 'kam/a'"),
    ],
)
def test_patterns_that_do_not_fit(tmp_path: Path, pattern: str, message: str):
    with pytest.raises(DataError, match=message):
        read_source(touch(tmp_path, "kam/a.tif", "kam/a.gpkg"), pattern=pattern)


def test_what_lacks_its_other_half_is_named(tmp_path: Path):
    images = [f"images/{letter}.png" for letter in "abcde"]
    root = touch(tmp_path / "city", *images, "masks/a.png", "masks/x.png")
    with pytest.raises(
        DataError,
        match=r"4 images have no labels, first images/b\.png, images/c\.png, images/d\.png; "
        r"1 labels have no image, first masks/x\.png$",
    ):
        read_source(root)


@pytest.mark.parametrize(
    "files", [["a.tif", "a.tiff", "a.geojson"], ["a.tif", "a.shp", "a.gpkg"], ["a.png", "a.fgb", "masks/a.png"]]
)
def test_several_of_one_are_an_error(tmp_path: Path, files: list[str]):
    with pytest.raises(DataError, match=f"several files for one image or its labels: {', '.join(sorted(files))}"):
        read_source(touch(tmp_path, *files))


def test_an_empty_folder_says_what_was_expected(tmp_path: Path):
    touch(tmp_path, "read.me")
    with pytest.raises(DataError, match="holds no images with labels") as caught:
        read_source(tmp_path)
    assert "masks/x.png" in caught.value.hint


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a b.tif", "a b.fgb", "a-b.tif", "a-b.fgb"], "city/a b and city/a-b"),
        (["k m/a.tif", "k m/a.fgb", "k-m/b.tif", "k-m/b.fgb"], "k m and k-m"),
        (["s t/a.png", "s t/a_mask.png", "s-t/b.png", "s-t/b_mask.png"], "city/s t and city/s-t"),
        (["s/a+.png", "s/a+_mask.png", "s/a-.png", "s/a-_mask.png"], "city/s/a.? and city/s/a.?"),
    ],
)
def test_names_that_become_equal_are_an_error(tmp_path: Path, files: list[str], names: str):
    with pytest.raises(DataError, match=f"1 of 2 names are used twice, first {names}$"):
        read_source(touch(tmp_path / "city", *files))


def test_a_pattern_that_makes_names_equal_is_an_error(tmp_path: Path):
    root = touch(tmp_path / "k", "s/x/a.png", "s/x/a_mask.png", "s/y/a.png", "s/y/a_mask.png")
    assert len(read_source(root).pairs) == 2
    with pytest.raises(DataError, match=r"1 of 2 names are used twice, first k/s/a$"):
        read_source(root, pattern="(?P<scene>s)")


def table(root: Path, *lines: str, name: str = "list.csv") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\n".join(lines))
    return root / name


def test_a_table_of_scenes(tmp_path: Path):
    touch(tmp_path, "x/a.tif", "a.gpkg", "a.fgb", "b.tif")
    file = table(
        tmp_path,
        "\ufeffimage, labels ,area,scene,tier,remark",
        "x/a.tif,a.gpkg; a.fgb,kam,s1,2,fine",
        "",
        f'"{tmp_path}/b.tif",https://host/b.geojson,,,,',
    )
    source = read_source(file)
    assert source.name == "list"
    root = str(tmp_path)
    assert source.scenes == (
        Scene("kam", "s1", 2, f"{root}/x/a.tif", (f"{root}/a.gpkg", f"{root}/a.fgb")),
        Scene("list", "b", 1, f"{root}/b.tif", ("https://host/b.geojson",)),
    )
    assert [scene.tier for scene in read_source(file, tier=1).scenes] == [1, 1]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_table_with_other_delimiters_and_empty_rows(tmp_path: Path, delimiter: str):
    """As spreadsheets write them."""
    touch(tmp_path, "a.tif", "a.gpkg")
    lines = (("image", "labels", "tier"), ("a.tif", "a.gpkg", "2"), ("", "", ""))
    (scene,) = read_source(table(tmp_path, *map(delimiter.join, lines))).scenes
    assert (scene.image, scene.labels, scene.tier) == (f"{tmp_path}/a.tif", (f"{tmp_path}/a.gpkg",), 2)


@pytest.mark.parametrize(
    ("files", "remedy"),
    [
        (("images/a.tif", "labels/a.kml"), "ogr2ogr -t_srs EPSG:4326 labels/a.geojson labels/a.kml"),
        (("images/a.tif", "labels/a.zip"), "ogr2ogr -t_srs EPSG:4326 labels/a.geojson labels/a.zip"),
        (("images/a.ecw", "labels/a.geojson"), "gdal_translate images/a.tif images/a.ecw"),
    ],
)
def test_formats_that_are_not_read_are_named(tmp_path: Path, files: tuple[str, ...], remedy: str):
    with pytest.raises(DataError, match=r"the format of .*/a\.\w+ is not read") as caught:
        read_source(touch(tmp_path, *files))
    assert caught.value.hint.endswith(remedy)


def test_a_table_of_pairs(tmp_path: Path):
    touch(tmp_path, "a.png", "m/a.png", "b.png", "m/b.png")
    file = table(tmp_path, "mask,image,scene,name", "m/b.png,b.png,,", "m/a.png,./a.png,s,n")
    root = str(tmp_path)
    assert read_source(file).pairs == (
        Pair("list", "list", 1, "b", f"{root}/b.png", f"{root}/m/b.png"),
        Pair("list", "s", 1, "n", f"{root}/a.png", f"{root}/m/a.png"),
    )


def test_a_table_may_hold_both_and_follow_a_pattern(tmp_path: Path):
    touch(tmp_path, "kam/1.png", "m.png", "kam/2.tif", "l.fgb")
    file = table(tmp_path, "image,mask,labels", "kam/1.png,m.png,", "kam/2.tif,,l.fgb")
    source = read_source(file, pattern="(?P<area>.*)/")
    assert [source.scenes[0].area, source.pairs[0].area] == ["kam", "kam"]


def test_a_table_on_the_web(web: Web):
    table(web.folder / "bucket", "image,mask", "images/a.png,masks/a.png", "s3://other/b.png,https://host/b.png")
    for base in (f"{web.url}/bucket", "s3://bucket"):
        source = read_source(f"{base}/list.csv")
        assert [(pair.image, pair.mask) for pair in source.pairs] == [
            (f"{base}/images/a.png", f"{base}/masks/a.png"),
            ("s3://other/b.png", "https://host/b.png"),
        ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["image,label", "a.png,a.fgb"], "has the columns image, label$"),
        ([], r"has the columns \(none\)$"),
        (["image,mask"], "has no rows$"),
        (["image,mask,image", "a.png,a.png,x/a.png"], "has two columns of one name: image, mask, image$"),
        (["image,mask", "a.png,", ",a.png", "a.png,a.png"], "2 of 3 rows are incomplete, first line 2, line 3$"),
        (["image,mask,labels", "a.png,a.png,a.fgb"], "1 of 1 rows are incomplete, first line 2$"),
        (["image,mask,tier", "a.png,a.png,x", "a.png,a.png,2"], "1 of 2 rows have an unknown tier, first line 2: x$"),
        (["image,mask", *(f"{n}.png,a.png" for n in range(5))], r"5 of 10 files do not exist, first .*0.png.*2\.png$"),
        (["image,mask", "a.png,a.png", "a.png,a.png"], "1 of 2 names are used twice, first list/list/a$"),
        (["image,labels", "a.png,a.png", "x/a.png,a.png"], "1 of 2 names are used twice, first list/a$"),
    ],
)  # fmt: skip
def test_tables_that_are_incomplete(tmp_path: Path, lines: list[str], message: str):
    touch(tmp_path, "a.png", "x/a.png")
    with pytest.raises(DataError, match=message):
        read_source(table(tmp_path, *lines))


def test_a_table_that_is_none(tmp_path: Path):
    (tmp_path / "list.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"list\.csv is not a CSV"):
        read_source(tmp_path / "list.csv")


def test_names_fit_in_file_names(tmp_path: Path):
    root = touch(tmp_path / ".my city!", "ár/1 (a).png", "ár/1 (a)_mask.png")
    source = read_source(root)
    (pair,) = source.pairs
    for text in (source.name, pair.area, pair.scene, pair.name):
        assert re.fullmatch(r"[\w-][\w.-]*", text)
    assert (source.name, pair.area, pair.name) == ("my-city", "my-city", "1--a")
    assert pair.scene == "ár"
