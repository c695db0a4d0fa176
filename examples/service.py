"""
A service that segments pictures, started by `uvicorn service:app`:

    curl --data-binary @street.jpg "localhost:8000/segment?labels=road,car,tree" --output mask.png

The answer is a palette PNG with the index of the label of each pixel, 255 for none. Threads share one pipeline.
"""

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

from fastapi import FastAPI, HTTPException, Request, Response
from transformers import pipeline

import zegclip
from zegclip.drawing.colours import index_mask, make_colours
from zegclip.processing.image_reading import load_rgb, read_frame

MOST_BYTES, MOST_PIXELS = 20_000_000, 16_000_000
THREADS, MOST_WAITING = 2, 16

segmenter = pipeline(
    "zero-shot-image-segmentation",
    model=os.environ.get("ZEGCLIP_MODEL", zegclip.DEFAULT_MODEL),
    output_type="class_map",
)
threads = ThreadPoolExecutor(THREADS)
places = threading.BoundedSemaphore(THREADS + MOST_WAITING)
app = FastAPI()


def work(picture: bytes, labels: str, threshold: float) -> bytes:
    """Segment a picture. Errors of who asks, such as a damaged file or a blank label, are `ValueError`."""
    width, height = read_frame(picture)[1]  # before anything is decoded
    if width * height > MOST_PIXELS:
        raise ValueError(f"The picture has {width} x {height} pixels, and the limit is {MOST_PIXELS}.")
    result = segmenter(load_rgb(picture), candidate_labels=labels, threshold=threshold)
    file = BytesIO()
    index_mask(result["segmentation"], make_colours(len(result["labels"]))).save(file, "PNG")
    return file.getvalue()


@app.post("/segment")
async def segment(request: Request, labels: str, threshold: float = 0.0) -> Response:
    """Queue a picture, or refuse it at once if too many are waiting."""
    # Before it is read, so that what waits fits into the memory.
    if not places.acquire(blocking=False):
        raise HTTPException(503, "Too many pictures are waiting.", {"Retry-After": "1"})
    try:
        picture = bytearray()
        async for part in request.stream():
            picture += part
            if len(picture) > MOST_BYTES:
                raise HTTPException(413, f"The limit is {MOST_BYTES} bytes.")
        future = threads.submit(work, bytes(picture), labels, threshold)
    except BaseException:
        places.release()
        raise
    future.add_done_callback(lambda _: places.release())  # also if who asked has gone
    try:
        return Response(await asyncio.wrap_future(future), media_type="image/png")
    except ValueError as error:
        raise HTTPException(422, str(error)) from error
