"""Footprint polygons: read, repaired, projected, drawn as masks."""

from dataclasses import dataclass

import numpy as np
import pyogrio
import pyproj
import shapely
from numpy.typing import NDArray
from pyogrio.errors import DataSourceError
from rasterio.features import rasterize
from rasterio.transform import Affine

from kit.data.masks import BUILDING, IGNORE
from kit.errors import FootprintError


@dataclass(frozen=True)
class Footprints:
    """The polygons of a scene with a spatial index.

    Args:
        polygons: valid Polygon or MultiPolygon geometries, in `crs`.
        crs: their CRS.
        repaired: how many were invalid and have been mended.
        dropped: how many were empty, null or not polygons.
    """

    polygons: NDArray[np.object_]
    crs: str
    repaired: int = 0
    dropped: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "_tree", shapely.STRtree(self.polygons))

    def to(self, crs: str) -> "Footprints":
        """Returns the same footprints in another CRS."""
        if pyproj.CRS(crs) == pyproj.CRS(self.crs):
            return self
        change = pyproj.Transformer.from_crs(self.crs, crs, always_xy=True)
        moved = shapely.transform(self.polygons, change.transform, interleaved=False)
        return Footprints(moved, crs, self.repaired, self.dropped)

    def touching(self, bounds: tuple[float, float, float, float]) -> NDArray[np.object_]:
        """Returns the polygons that intersect (left, bottom, right, top), in `crs`."""
        hits = self._tree.query(shapely.box(*bounds), predicate="intersects")  # type: ignore[attr-defined]
        found: NDArray[np.object_] = self.polygons[np.sort(hits)]
        return found


def read_footprints(files: tuple[str, ...], crs: str) -> Footprints:
    """Returns the footprints of a scene's label files, projected to `crs`.

    GeoJSON is EPSG:4326 whatever its `crs` member says (RFC 7946): some of the challenge's are broken.

    Raises:
        FootprintError: a file cannot be read, or none holds a polygon.
    """
    geometries: list[NDArray[np.object_]] = []
    for file in files:
        try:
            meta, _, wkb, _ = pyogrio.raw.read(file, columns=[])
        except (DataSourceError, ValueError) as cause:
            raise FootprintError(f"footprints {file} cannot be read: {cause}", "expected GeoJSON polygons") from cause
        is_geojson = file.lower().endswith((".geojson", ".json"))
        found = Footprints(shapely.from_wkb(wkb), "EPSG:4326" if is_geojson else str(meta["crs"] or "EPSG:4326"))
        geometries.append(found.to(crs).polygons)
    raw = shapely.force_2d(np.concatenate(geometries)) if geometries else np.array([], dtype=object)
    invalid = ~shapely.is_valid(raw) & ~shapely.is_missing(raw)
    raw = np.where(invalid, shapely.make_valid(raw), raw)
    kept = np.isin(shapely.get_type_id(raw), (3, 6)) & ~shapely.is_empty(raw)  # Polygon, MultiPolygon
    if not kept.any():
        raise FootprintError(
            f"no polygon in {', '.join(files)} ({len(raw)} features)", "a scene without buildings cannot be trained on"
        )
    return Footprints(raw[kept], crs, int(invalid[kept].sum()), int((~kept).sum()))


def draw_mask(
    polygons: NDArray[np.object_], transform: Affine, shape: tuple[int, int], valid: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Returns the building mask of a tile.

    Args:
        polygons: in the tile's CRS.
        transform: pixel to CRS.
        shape: height and width, px.
        valid: (H, W), False where the image holds no data.

    Returns:
        (H, W) uint8: 0 background, 1 building (the pixel's centre lies in a polygon), 255 no data.
    """
    mask = np.zeros(shape, np.uint8)
    if len(polygons):
        mask = rasterize(((p, BUILDING) for p in polygons), shape, transform=transform, dtype="uint8")
    mask[~valid] = IGNORE
    return mask
