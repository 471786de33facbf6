"""Options of a data set: tiles, labels, folds."""

from dataclasses import dataclass, field

from kit.data.burning import BOUNDARY, CONTACT, read_width
from kit.data.folds.assign import check_way
from kit.data.grids import check_grid
from kit.data.tiles.ready_masks import Value
from kit.data.tiles.tile import IMAGE_FORMATS, SCENE
from kit.errors import DataError, nearest


@dataclass(frozen=True)
class Style:
    """The options of tiles."""

    grid: str = "z19"  # see `kit.data.grids.grid_of`
    side_px: int = 1024  # side of a tile
    overlap_px: int = 0  # what neighbours share
    min_valid: float = 0.01  # tiles with a smaller share of imagery are skipped, and listed
    layers: bool = False  # masks get the bands footprint, boundary and contact
    boundary: str = BOUNDARY  # width of the window that makes boundaries, `5px` or `0.4m`
    contact: str = CONTACT  # how near two footprints are in contact, `5m` or `60px`
    images: str = "lossless"  # a key of `IMAGE_FORMATS`, or `scene` for windows into the scenes


@dataclass(frozen=True)
class PrepareOptions:
    """The options of `kit prepare`."""

    name: str = ""  # of the data set; by default the catalogue's id, or the folder's name
    by: str = "auto"  # how tiles are assigned to folds, see `kit.data.folds.assign`
    k: int = 5  # number of folds
    pattern: str = ""  # where area and scene stand in the paths of a folder, see `kit.data.sources.source.read_source`
    where: str = ""  # SQL condition that chooses features of footprint files; empty: all
    allow_outside: bool = False  # accepts scenes and labels that name files outside their folder
    tier: int | None = None  # of the labels; None: as the catalogue's id says
    # metres on the ground per pixel, for ready-made images without a georeference; None: unknown
    gsd_m: float | None = None
    # classes or colours that are buildings in ready-made masks; empty: 1, else 255
    building_values: tuple[Value, ...] = ()
    only: tuple[str, ...] = ()  # scenes, as `area/scene`, to cut again; the others stay as they are, cut or not
    workers: int | None = None  # processes; None: one per core, and one in all for little imagery
    style: Style = field(default_factory=Style)  # of the tiles

    def check(self) -> None:
        """Checks the options before anything is read.

        Raises:
            DataError: an unknown grid, image format or way to make folds, or a number out of range.
        """
        style = self.style
        check_grid(style.grid, style.side_px, style.overlap_px)
        read_width(style.boundary)
        read_width(style.contact)
        formats = [*IMAGE_FORMATS, SCENE]
        if style.images not in formats:
            raise DataError(f"image format {style.images!r} is unknown", nearest(style.images, formats))
        if not 0 <= style.min_valid <= 1:
            raise DataError(f"smallest share of imagery {style.min_valid:g} is out of range", "expected 0 to 1")
        check_way(self.by, self.k)
