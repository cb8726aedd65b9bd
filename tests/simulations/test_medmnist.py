"""MedMNIST: the official parts, dealt to sites without a loss; complaints that name a place."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from public_files import SECRET, npz, present, refused

from clinimeta.common.errors import MissingDataError, StudyError
from clinimeta.simulations.datasets import DATASETS, medmnist
from clinimeta.simulations.datasets.locate import digest
from clinimeta.simulations.datasets.medmnist import KINDS, Kind, MedMnist, deal, read_images

GREY = Kind("grey.npz", (4, 1, 2), ("well", "ill"), also="grey_unordered.npz")
COLOURED = Kind("coloured.npz", (4, 1, 2), ("a", "b", "c"), colours=3)


def arrays(kind: Kind = GREY, **changes: object) -> dict[str, object]:
    found: dict[str, object] = {}
    for number, (part, size) in enumerate(zip(("train", "val", "test"), kind.sizes, strict=True)):
        shape = (size, 28, 28) if kind.colours == 1 else (size, 28, 28, 3)
        pixels = np.arange(np.prod(shape)) + number
        found[f"{part}_images"] = (pixels % 251).astype(np.uint8).reshape(shape)
        found[f"{part}_labels"] = (np.arange(size)[:, None] % len(kind.classes)).astype(np.uint8)
    return found | changes


@pytest.mark.parametrize("kind", [GREY, COLOURED], ids=lambda kind: kind.name)
def test_images_keep_their_parts_pixels_and_labels(tmp_path: Path, kind: Kind) -> None:
    path = npz(tmp_path / kind.name, arrays(kind))
    found = read_images(path, kind)
    assert found.classes == kind.classes
    for part, name in ((found.train, "train"), (found.validation, "val"), (found.test, "test")):
        raw = np.array(arrays(kind)[f"{name}_images"])
        assert np.array_equal(part.images, raw.reshape(len(raw), 28, 28, kind.colours))
        assert np.array_equal(part.labels, np.array(arrays(kind)[f"{name}_labels"])[:, 0])


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"test_labels": np.array([[0], [2]], dtype=np.uint8)}, "array 'test_labels', row 2, column 1"),
        ({"train_labels": np.array([[0], [1], [-1], [0]])}, "array 'train_labels', row 3, column 1"),
        ({"val_labels": np.array([0], dtype=np.uint8)}, "array 'val_labels'"),
        ({"val_images": np.zeros((1, 28, 28, 3), np.uint8)}, "array 'val_images'"),
        ({"train_images": np.full((4, 28, 28), float(SECRET))}, "array 'train_images'"),
        ({"train_images": np.zeros((4, 27, 28), np.uint8)}, "array 'train_images'"),
        ({"train_images": np.zeros((5, 28, 28), np.uint8)}, "array 'train_labels'"),
        (
            {"train_images": np.zeros((3, 28, 28), np.uint8), "train_labels": np.zeros((3, 1), np.uint8)},
            "grey.npz",
        ),
    ],
)
def test_other_images_are_refused_by_place(tmp_path: Path, changes: Mapping[str, object], where: str) -> None:
    path = npz(tmp_path / "grey.npz", arrays(**changes))
    assert refused(lambda: read_images(path, GREY)).where.endswith(where)


def test_every_image_goes_to_one_site_and_official_test_images_are_test_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(medmnist.KINDS, "breast", GREY)
    path = npz(tmp_path / "grey.npz", arrays())
    sites = MedMnist(sites=2, seed=1).hospitals(tmp_path)
    raw = arrays()
    images = np.concatenate(
        [np.array(raw[f"{part}_images"]).reshape(-1, 784) for part in ("train", "val", "test")]
    )
    found = np.concatenate(
        [
            np.array([site.records.cells[f"pixel_{pixel}"] for pixel in range(784)], dtype=np.uint8).T
            for site in sites.values()
        ]
    )
    assert sorted(map(bytes, found)) == sorted(map(bytes, images))
    tested = [
        bytes(row)
        for row, held in zip(found, [h for s in sites.values() for h in s.test or ()], strict=True)
        if held
    ]
    assert sorted(tested) == sorted(map(bytes, images[-2:]))
    labels = [cell for site in sites.values() for cell in site.records.cells["label"]]
    assert sorted(labels) == ["0"] * 4 + ["1"] * 3
    assert MedMnist().files(tmp_path) == {"grey.npz": digest(path)}


def test_colours_come_one_after_another_as_the_convolution_takes_them(tmp_path: Path) -> None:
    found = read_images(npz(tmp_path / "coloured.npz", arrays(COLOURED)), COLOURED).train
    as_images = found.planes().reshape(4, 3, 28, 28)
    for colour in range(3):
        assert np.array_equal(as_images[:, colour], found.images[..., colour])


def test_the_other_name_is_taken_where_the_official_file_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(medmnist.KINDS, "breast", GREY)
    with pytest.raises(MissingDataError, match=r"'grey\.npz'"):
        MedMnist().files(tmp_path)
    npz(tmp_path / "grey_unordered.npz", arrays())
    assert list(MedMnist().files(tmp_path)) == ["grey_unordered.npz"]
    npz(tmp_path / "grey.npz", arrays())
    assert list(MedMnist().files(tmp_path)) == ["grey.npz"]


def test_a_smaller_concentration_makes_sites_differ_more() -> None:
    labels = np.repeat(np.arange(2), 3000)

    def spread(concentration: float) -> float:
        site_of = deal(labels, 5, concentration, 0)
        return float(np.std([labels[site_of == site].mean() for site in np.unique(site_of)]))

    assert spread(0.2) > 3 * spread(1000.0)
    assert np.array_equal(deal(labels, 5, 1.0, 7), deal(labels, 5, 1.0, 7))
    assert not np.array_equal(deal(labels, 5, 1.0, 7), deal(labels, 5, 1.0, 8))
    assert set(deal(labels, 5, 1000.0, 0)) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("options", [{"images": "skin"}, {"sites": 0}, {"concentration": 0.0}])
def test_an_option_that_cannot_be_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(StudyError):
        DATASETS.build("medmnist", options)


@pytest.mark.data
@pytest.mark.parametrize(
    ("images", "counts", "share"),
    [
        ("breast", [147, 399], 0.731),
        ("pneumonia", [1214, 3494], 0.625),
        ("retina", [486, 128, 206, 194, 66], 0.435),
    ],
)
def test_the_sets_have_the_published_classes(
    data_dir: Path, images: Literal["breast", "pneumonia", "retina"], counts: list[int], share: float
) -> None:
    data = present(data_dir, "medmnist")
    found = MedMnist(images).parts(data)
    assert np.bincount(found.train.labels).tolist() == counts
    assert np.bincount(found.test.labels).max() / len(found.test.labels) == pytest.approx(share, abs=5e-4)
    assert len(found.classes) == len(counts)
    sites = MedMnist(images, sites=3).hospitals(data)
    assert sum(len(site.records) for site in sites.values()) == sum(KINDS[images].sizes)
    assert sum(sum(site.test or ()) for site in sites.values()) == KINDS[images].sizes[2]


@pytest.mark.data
def test_the_x_rays_have_the_published_mean_and_deviation(data_dir: Path) -> None:
    pixels = MedMnist("pneumonia").parts(present(data_dir, "medmnist")).train.images / 255
    assert (pixels.mean(), pixels.std()) == (pytest.approx(0.5719, abs=5e-5), pytest.approx(0.1684, abs=5e-5))
