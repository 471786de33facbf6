"""The scenes of the sample city: areas and their look, location, size."""

from dataclasses import dataclass, replace
from math import sqrt

from affine import Affine
from rasterio.warp import transform

from kit.sample.plan import GSD_M, Look

CHIP_PX = 1024
BLOCK_PX = 1250  # side of a block of tier 2: 100 m at 0.08 m per pixel


@dataclass(frozen=True)
class Area:
    """An area: UTM zone, location of its first scene (degrees), look."""

    epsg: int
    longitude: float
    latitude: float
    look: Look


AREAS = {
    "kum": Area(32630, -1.6244, 6.6885, Look(  # Kumasi: red earth, rusty sheets, dense
        earth=((152, 92, 62), (172, 112, 78), (186, 134, 100)), grass=((86, 104, 56), (112, 122, 70)),
        materials={"rust": 4, "dull zinc": 2, "zinc": 2, "maroon": 2, "concrete": 1.5, "tile": 1},
        green=0.30, gap_m=(1.3, 3.5), open_blocks=0.22, trees=70, asphalt=0.3,
    )),
    "nbo": Area(32737, 36.8219, -1.2921, Look(  # Nairobi: green, tiles and blue paint
        earth=((122, 98, 80), (146, 124, 104), (164, 148, 130)), grass=((74, 96, 52), (98, 118, 62), (122, 132, 78)),
        materials={"zinc": 3, "blue": 2, "tile": 3, "concrete": 2, "dull zinc": 2, "maroon": 1},
        green=0.45, gap_m=(1.5, 6), open_blocks=0.25, trees=100, asphalt=0.6,
    )),
    "lus": Area(32735, 28.2826, -15.4167, Look(  # Lusaka: dry sand, grey sheets, sparse
        earth=((164, 140, 112), (182, 162, 136), (198, 182, 160)), grass=((118, 118, 72), (142, 136, 88)),
        materials={"zinc": 4, "dull zinc": 3, "concrete": 2, "rust": 2, "blue": 1},
        green=0.25, gap_m=(1.5, 5), open_blocks=0.25, trees=45, asphalt=0.3,
    )),
}  # fmt: skip
TIER_2_AREAS = {
    "dar": Area(32737, 39.2083, -6.7924, Look(  # Dar es Salaam: grey sand, palms, rust beside blue paint
        earth=((138, 122, 104), (158, 144, 126), (176, 164, 146)), grass=((84, 108, 62), (112, 126, 76)),
        materials={"rust": 3, "blue": 2, "zinc": 3, "maroon": 1, "concrete": 1},
        green=0.35, gap_m=(1.3, 4), open_blocks=0.12, trees=80, asphalt=0.4,
    )),
    "kin": Area(32733, 15.3136, -4.3317, Look(  # Kinshasa: dark earth, lush, dull sheets
        earth=((112, 84, 64), (132, 104, 82), (150, 124, 102)), grass=((66, 98, 48), (88, 116, 58), (106, 128, 70)),
        materials={"dull zinc": 4, "maroon": 2, "rust": 2, "tile": 1, "concrete": 1},
        green=0.45, gap_m=(1.5, 4.5), open_blocks=0.12, trees=90, asphalt=0.4,
    )),
    "ndj": Area(32633, 15.0444, 12.1348, Look(  # N'Djamena: pale clay, flat roofs among sheets, few trees
        earth=((172, 154, 132), (188, 172, 150), (204, 190, 170)), grass=((132, 130, 88), (150, 146, 102)),
        materials={"concrete": 4, "dull zinc": 2, "zinc": 2, "rust": 1},
        green=0.15, gap_m=(1.4, 4), open_blocks=0.12, trees=30, asphalt=0.2,
    )),
}  # fmt: skip


@dataclass(frozen=True)
class Site:
    """A scene to draw."""

    scene: str  # its id
    area: str  # a key of `AREAS` or `TIER_2_AREAS`
    height_px: int  # of the image
    width_px: int  # of the image
    gsd_m: float = GSD_M  # metres on the ground per pixel
    east_m: float = 0  # of its upper left corner, from the area's location
    south_m: float = 0  # likewise
    snap_m: int = 0  # the corner lies on multiples of this many metres; 0: anywhere

    def sized(self, shrink: int = 1, scale: float = 1) -> "Site":
        """Returns the site with its sides divided by `shrink`, and its area and distances scaled."""
        side = sqrt(scale)
        height, width = (round(px // shrink * side) for px in (self.height_px, self.width_px))
        return replace(
            self, height_px=height, width_px=width, east_m=self.east_m * side, south_m=self.south_m * side
        )  # fmt: skip


TRAIN = (  # scenes of an area are 400 m apart; none is wider than 180 m
    Site("kum_a", "kum", 1811, 1687, 0.0752),
    Site("kum_b", "kum", 1549, 2043, 0.0741, 400, 60),
    Site("nbo_a", "nbo", 1903, 1777, 0.0765),
    Site("nbo_b", "nbo", 2111, 1597, 0.0750, 400, 60),
    Site("lus_a", "lus", 1733, 1893, 0.0733),
    Site("lus_b", "lus", 1501, 2287, 0.0758, 400, 60),
)
TIER_2 = tuple(  # of 2 x 3 blocks each, whose corners lie on multiples of 100 m
    Site(f"{area}_{letter}", area, 3 * BLOCK_PX, 2 * BLOCK_PX, 0.08, east_m, snap_m=100)
    for area in TIER_2_AREAS
    for letter, east_m in (("a", 0), ("b", 400))
)
TEST = (  # of two ground resolutions; the challenge's chips have several
    Site("kum_t", "kum", 2 * CHIP_PX, 3 * CHIP_PX),
    Site("lus_t", "lus", 2 * CHIP_PX, 3 * CHIP_PX, 0.12),
)


def georeference(site: Site) -> tuple[str, Affine]:
    """Returns a training scene's CRS (UTM) and its transform from pixels to metres."""
    area = (AREAS | TIER_2_AREAS)[site.area]
    crs = f"EPSG:{area.epsg}"
    (east,), (north,) = transform("EPSG:4326", crs, [area.longitude], [area.latitude])
    if snap := site.snap_m:
        left, top = round(east / snap) * snap + site.east_m, round(north / snap) * snap - site.south_m
    else:
        left, top = round(east) + site.east_m + 0.25, round(north) - site.south_m + 0.5
    return crs, Affine(site.gsd_m, 0, left, 0, -site.gsd_m, top)
