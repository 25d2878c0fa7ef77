"""Classify a camera's frames with OpenCV and draw the prediction; q ends it.

Run it with `python camera.py ARTIFACT`, after `pip install opencv-python`.
"""

import sys

import cv2

import kdedge


def main(artifact: str, camera: int = 0) -> None:
    """Shows the frames of a camera with the best class and its score."""
    frames = cv2.VideoCapture(camera)
    with kdedge.load(artifact) as model:
        while frames.isOpened():
            is_read, frame = frames.read()
            if not is_read:
                break
            best = model(frame, bgr=True)  # OpenCV's frames are BGR
            text = best.class_name
            if best.score_percent is not None:  # as for "none"
                text += f" {best.score_percent:.0f} %"
            cv2.putText(frame, text, (10, 40), cv2.FONT_HERSHEY_SIMPLEX, 1, (0, 255, 0), 2)
            cv2.imshow("kdedge", frame)
            if cv2.waitKey(1) == ord("q"):
                break
    frames.release()


if __name__ == "__main__":
    main(sys.argv[1])
