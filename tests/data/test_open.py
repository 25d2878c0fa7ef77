import io

import pytest
from PIL import Image

from kdedge.config.data_spec import ClassesSpec, DataSpec, SourceSpec
from kdedge.data.classes import load_class_names
from kdedge.data.open import open_source
from kdedge.errors import DataError

NAMES = ("cat", "dog")


@pytest.fixture
def image() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def specs(tmp_path, image, write_shard):
    """The same two labeled images as folder, list, shard and table."""
    datasets = pytest.importorskip("datasets")
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in NAMES:
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "a.png").write_bytes(image)
    (tmp_path / "images.csv").write_text("images/cat/a.png,cat\nimages/dog/a.png,dog\n")
    members = [("cat.png", image), ("cat.cls", b"0"), ("dog.png", image), ("dog.cls", b"1")]
    write_shard(tmp_path / "s-0.tar", *members)
    table = pa.table({"image": [image, image], "label": list(NAMES)})
    pq.write_table(table, tmp_path / "images.parquet")
    datasets.Dataset(table).save_to_disk(tmp_path / "dataset")
    return {
        "folder": SourceSpec(folder=tmp_path / "images"),
        "list": SourceSpec(list=tmp_path / "images.csv"),
        "webdataset": SourceSpec(webdataset=str(tmp_path / "s-{0..0}.tar")),
        "parquet": SourceSpec(parquet=str(tmp_path / "images.parquet")),
        "huggingface": SourceSpec(huggingface=tmp_path / "dataset"),
    }


@pytest.mark.parametrize("kind", ["folder", "list", "webdataset", "parquet", "huggingface"])
def test_every_source_gives_the_same_images_and_the_labels_that_are_asked_for(kind, specs, image):
    def opened(names, *, labeled=True):
        return open_source(specs[kind], class_names=names, labeled=labeled, data=DataSpec())

    source = opened(NAMES)
    assert [item.label for item in source.items] == [0, 1]
    assert [source.read(0), source.read(1)] == [image, image]
    assert len({item.key for item in source.items}) == 2
    assert [item.label for item in opened(("x", "y"), labeled=False).items] == [None, None]
    turned = [item.label for item in opened(NAMES[::-1]).items]
    assert turned == ([0, 1] if kind == "webdataset" else [1, 0])  # whose labels are positions


def test_built_in_drawings_have_their_own_classes():
    spec = SourceSpec(synthetic="shapes", part="test")
    names = load_class_names(ClassesSpec(synthetic="shapes"), data=DataSpec())
    source = open_source(spec, class_names=names, labeled=True, data=DataSpec())
    assert {item.label for item in source.items} == set(range(len(names)))
    with pytest.raises(DataError, match="Set classes to"):
        open_source(spec, class_names=NAMES, labeled=True, data=DataSpec())


@pytest.mark.parametrize("kind", ["folder", "list", "webdataset"])
def test_columns_are_of_tables_alone(kind, specs):
    with pytest.raises(ValueError, match="which only parquet and huggingface have"):
        SourceSpec.model_validate({**specs[kind].model_dump(), "label_column": "y"})
