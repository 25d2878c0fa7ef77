"""Own images, end to end: recipe, teacher, student, artifact, predictions.

Run it with `python own_images.py IMAGES CLASSES_FILE LABELED TEST`.
"""

import sys
from pathlib import Path

import kdedge


def main(images: str, classes: str, labeled: str, test: str, **changes: object) -> None:
    """Trains on folders and prints what the exported model says of the test images.

    `changes` are sections of the recipe, such as another `teacher`.
    """
    recipe = {
        "name": "line3",
        "classes": {"file": classes, "template": "a photo of a {}."},
        "data": {
            "unlabeled": {"folder": images},
            "labeled": {"folder": labeled},
            "test": {"folder": test},
        },
        "teacher": {"method": "ridge", "backbone": "ViT-L-14", "weights": "openai"},
        "student": {
            "method": "ridge",
            "backbone": "ViT-B-16",
            "weights": "openai",
            "settings": {"labeled_weight": 1.0},
            "views": 1,
        },
        **changes,
    }
    run = kdedge.distill(recipe)
    print(run)
    with kdedge.load(kdedge.export(run, int8=True)) as model:
        for path in sorted(Path(test).rglob("*.*")):
            print(path, model(path).class_name)


if __name__ == "__main__":
    main(*sys.argv[1:])
