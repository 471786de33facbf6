"""Write the building mask of a GeoTIFF with geo-inference. kit is not needed.

pip install geo-inference
python map.py weights/lite0.pt city.tif masks

The image is uint8, RGB or RGBA, at about the resolution of the training. The mask, in the folder `masks`, is 1 for
building, 0 elsewhere, and 255 where a band is 0: no data.
"""

import sys

import torch
from geo_inference.geo_inference import GeoInference

if len(sys.argv) != 4:
    sys.exit(__doc__)
weights, image, folder = sys.argv[1:]
device = "gpu" if torch.cuda.is_available() else "cpu"
# one class: the probability of building, cut at the threshold
inference = GeoInference(weights, folder, device=device, num_classes=1, prediction_threshold=0.5)
print(inference(image, patch_size=512, workers=1))
