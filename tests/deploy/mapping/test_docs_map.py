"""docs/map.md: its commands, options, files, fields and messages are those of the code."""

import re
from pathlib import Path

from deploy_fakes import noise
from factories import at_kampala, write_bands
from test_docs import COMMANDS, DOCS, inline, rows_below

from kit.deploy.engine.backends import EngineOptions
from kit.deploy.mapping.layers import FIELDS, FORMATS, LAYER
from kit.deploy.mapping.map import CLEANING, SIMPLIFIED_PX, MapOptions, map_scene
from kit.deploy.mapping.map_files import INSIDE, MapFiles
from kit.deploy.mapping.overlay import LONGEST_PX
from kit.deploy.mapping.scene import COARSEST, SAME_RESOLUTION
from kit.deploy.mapping.squares import OBLIQUE
from kit.deploy.weights.cleaning import Cleaning
from kit.pipeline.export import Exported

PAGE = (DOCS / "map.md").read_text()
SHOWN = [p for p in COMMANDS["map"].params if not getattr(p, "hidden", False)]
OPTIONS = {text for p in SHOWN for text in [*p.opts, *p.secondary_opts] if text.startswith("--")}


def test_every_option_is_documented_and_no_other():
    documented = re.findall(r"`(--[\w-]+)", " ".join(row[0] + row[1] for row in rows_below("Options", PAGE)))
    assert set(documented) == OPTIONS - {"--root", "--debug", "--help"}
    for code in inline(PAGE):
        if code.startswith("--"):
            assert code.split()[0] in OPTIONS, code


def test_files_and_fields_are_as_documented(tmp_path: Path, tiny_weights: Exported):
    scene = write_bands(tmp_path / "s.tif", noise(70, 80).transpose(2, 0, 1), at_kampala(pixel=0.15))
    made = set()
    for kind in FORMATS:
        options, engine = MapOptions(format=kind), EngineOptions(tuning=False)
        map_scene(str(scene), tiny_weights.path, tmp_path / kind, "NAME", options, engine)
        made |= {path.name for path in (tmp_path / kind).iterdir() if not path.name.startswith(".")}
    inside = {MapFiles(Path("NAME"))[INSIDE].name}  # of weights with channels alone
    assert {row[0].strip("`") for row in rows_below("Its files", PAGE)} == made | inside
    assert [row[0].strip("`") for row in rows_below("Fields", PAGE)] == list(FIELDS)
    assert f"layer `{LAYER}`" in PAGE


def test_numbers_are_those_of_the_code():
    page = " ".join(PAGE.split())
    assert "by more than a tenth" in page
    assert SAME_RESOLUTION == 1.1
    assert f"more than {COARSEST:g} times coarser" in page
    assert f"{LONGEST_PX} px at most" in page
    assert f"than {round(OBLIQUE * 57.2958)} degrees off" in page
    assert "by default two pixels" in page
    assert SIMPLIFIED_PX == 2
    defaults = {p.name: p.default for p in COMMANDS["map"].params}
    assert f"up to {defaults['window']} px (`--window`) that share at least {defaults['overlap']} px" in page
    assert (defaults["window"], defaults["overlap"]) == (MapOptions().window_px, MapOptions().overlap_px)
    assert Cleaning(0.5, 2, 2) == CLEANING
    assert "0.5 by default" in page
    assert page.count("2 m² by default") == 2
