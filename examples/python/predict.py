"""Write the building mask of a TIFF with torch and rasterio. kit is not needed.

pip install torch rasterio
python predict.py weights/lite0.pt image.tif mask.tif

The image is uint8, RGB or RGBA, of any size. The mask is 1 for building and 0 elsewhere, with the image's georeference.
"""

import sys

import rasterio
import torch

if len(sys.argv) != 4:
    sys.exit(__doc__)
weights, source, target = sys.argv[1:]
device = "cuda" if torch.cuda.is_available() else "cpu"
model = torch.jit.load(weights, map_location=device)
with rasterio.open(source) as image:
    pixels = torch.from_numpy(image.read()[None])  # (1, 3 or 4, H, W)
    profile = {"height": image.height, "width": image.width, "crs": image.crs, "transform": image.transform}
with torch.inference_mode():
    mask = model.mask(pixels.to(device))[0].cpu().numpy()  # (1, H, W)
with rasterio.open(target, "w", driver="GTiff", count=1, dtype="uint8", compress="deflate", **profile) as file:
    file.write(mask)
