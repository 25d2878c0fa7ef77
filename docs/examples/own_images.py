"""Own images, end to end: recipe, teacher, student, artifact, predictions.

Run it with `python own_images.py IMAGES CLASSES_FILE LABELED TEST`.
"""

import sys

import kdedge


def main(images: str, classes: str, labeled: str, test: str) -> None:
    """Trains on four folders and prints what the exported model says of three images."""
    recipe = kdedge.init("line3", images=images, classes=classes, labeled=labeled, test=test)
    run = kdedge.distill(recipe)
    print(run)
    artifact = run.export(int8=True)
    with kdedge.load(artifact) as model:
        for path in sorted(run.images("test"))[:3]:
            print(path, model(path, top=3))


if __name__ == "__main__":
    main(*sys.argv[1:])
