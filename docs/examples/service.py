"""An HTTP service: POST an image to /classify, get its classes.

Run it with `ARTIFACT=runs/line3/02/artifacts/01 uvicorn service:app`, after
`pip install fastapi python-multipart uvicorn`.
"""

import os

from fastapi import FastAPI, HTTPException, UploadFile

import kdedge

model = kdedge.load(os.environ["ARTIFACT"])  # safe to call from several threads
app = FastAPI()


@app.post("/classify")
def classify(image: UploadFile, top: int = 3) -> list[dict[str, float | str | None]]:
    """Gives the best classes of an uploaded image with their scores in percent."""
    try:
        prediction = model(image.file.read(), top=top)
    except kdedge.DataError as error:
        raise HTTPException(422, str(error)) from error
    return [{"class": score.class_name, "percent": score.score_percent} for score in prediction.top]
