"""Write the building mask of a TIFF with onnxruntime and rasterio. Neither kit nor torch is needed.

pip install onnxruntime rasterio
python predict.py weights/lite0.onnx image.tif mask.tif

The image is uint8, RGB or RGBA, of any size. The mask is 1 for building and 0 elsewhere, with the image's georeference.
"""

import sys

import onnxruntime
import rasterio

if len(sys.argv) != 4:
    sys.exit(__doc__)
weights, source, target = sys.argv[1:]
session = onnxruntime.InferenceSession(weights, providers=onnxruntime.get_available_providers())
with rasterio.open(source) as image:
    pixels = image.read()[None]  # (1, 3 or 4, H, W)
    profile = {"height": image.height, "width": image.width, "crs": image.crs, "transform": image.transform}
(mask,) = session.run(["mask"], {"image": pixels})  # (1, 1, H, W)
with rasterio.open(target, "w", driver="GTiff", count=1, dtype="uint8", compress="deflate", **profile) as file:
    file.write(mask[0])
