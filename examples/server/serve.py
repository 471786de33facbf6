"""Serve the building masks of images over HTTP with torch and FastAPI. kit is not needed.

pip install torch fastapi uvicorn pillow
WEIGHTS=weights/lite0.pt uvicorn serve:app --port 8000
curl --data-binary @image.png http://127.0.0.1:8000/mask --output mask.png

The image is a PNG, JPEG, WebP or TIFF of 8 bits. The mask is a PNG, 255 for building and 0 elsewhere.
"""

import io
import os

import numpy
import torch
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from PIL import Image, UnidentifiedImageError

LIMIT_BYTES = 50_000_000
device = "cuda" if torch.cuda.is_available() else "cpu"
model = torch.jit.load(os.environ["WEIGHTS"], map_location=device)
app = FastAPI()


def predict(data: bytes) -> bytes:
    """Returns the mask as PNG."""
    image = Image.open(io.BytesIO(data))
    pixels = numpy.array(image.convert("RGBA" if "A" in image.getbands() else "RGB"))  # (H, W, 3 or 4)
    with torch.inference_mode():
        mask = model.mask(torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device))[0, 0]  # (H, W)
    file = io.BytesIO()
    Image.fromarray(mask.cpu().numpy() * 255).save(file, "PNG")
    return file.getvalue()


@app.post("/mask")
async def mask(request: Request) -> Response:
    """Answers the body, an image, with its mask."""
    data = b""
    async for chunk in request.stream():
        if len(data := data + chunk) > LIMIT_BYTES:
            raise HTTPException(413, f"more than {LIMIT_BYTES} bytes")
    try:
        return Response(await run_in_threadpool(predict, data), media_type="image/png")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as cause:
        raise HTTPException(400, f"not an image: {cause}") from cause
