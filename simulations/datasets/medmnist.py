"""MedMNIST: three sets of small medical images, each with its official split; sites are made of one of them.

Source: Yang et al., MedMNIST v2, Scientific Data 2023 (CC BY 4.0; not for clinical use). Breast ultrasound
(780 images, 2 classes), chest X-rays of children (5,856, 2) and fundus photographs (1,600 of three colours, 5
grades), 28 x 28. Protocol: the official train, validation and test images, AUROC and accuracy on the last;
federated: sites by a Dirichlet draw for each class (Hsu, Qi, Brown 2019).

The X-rays may also come as `pneumoniamnist_unordered.npz`: the same, the training images in another order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt
from jaxtyping import Int, UInt8

from clinimeta.common.errors import MissingDataError
from clinimeta.common.rng import derive_seed
from clinimeta.common.tasks.table import Records
from clinimeta.simulations.datasets import DATASETS
from clinimeta.simulations.datasets.arrays import Wanted, check_count, check_entries, read_arrays
from clinimeta.simulations.datasets.base import Hospital
from clinimeta.simulations.datasets.cells import ArrayCells
from clinimeta.simulations.datasets.locate import PublicFile, digest, locate

PAGE = "https://medmnist.com"
SIDE = 28
PARTS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Kind:
    """One of the sets: its file, the same under another name, how many images a part has, and its classes."""

    name: str
    sizes: tuple[int, int, int]
    classes: tuple[str, ...]
    colours: int = 1
    also: str = ""


KINDS: Mapping[str, Kind] = {
    "breast": Kind("breastmnist.npz", (546, 78, 156), ("malignant", "normal or benign")),
    "pneumonia": Kind(
        "pneumoniamnist.npz",
        (4708, 524, 624),
        ("normal", "pneumonia"),
        also="pneumoniamnist_unordered.npz",
    ),
    "retina": Kind(
        "retinamnist.npz", (1080, 120, 400), tuple(f"grade {grade}" for grade in range(5)), colours=3
    ),
}


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Part:
    """Images [images, 28, 28, colours], 0 to 255, and the class of each."""

    images: UInt8[np.ndarray, "images 28 28 colours"]
    labels: Int[np.ndarray, " images"]

    def planes(self) -> UInt8[np.ndarray, "images pixels"]:
        """An image a row: its colours one after another, each row by row."""
        return self.images.transpose(0, 3, 1, 2).reshape(len(self.labels), -1)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Images:
    """One of the sets in its official parts; `classes` names the labels in order."""

    classes: tuple[str, ...]
    train: Part
    validation: Part
    test: Part


@DATASETS.register("medmnist")
@dataclass(frozen=True, slots=True)
class MedMnist:
    """Small medical images (MedMNIST: `images` is "breast", "pneumonia" or "retina"), dealt to `sites`.

    The target `label` counts from 0; the inputs are `pixel_0`, `pixel_1`, ..., 0 to 255, one colour's image
    after another, as `conv4` takes them. The smaller `concentration` is, the more the sites differ in their
    classes. The official test images are test rows of the site that they are dealt to.
    """

    images: Literal["breast", "pneumonia", "retina"] = "breast"
    sites: Annotated[int, Ge(1)] = 4
    concentration: Annotated[float, Gt(0)] = 1.0
    seed: Annotated[int, Ge(0)] = 0

    @property
    def synthetic(self) -> bool:
        """These are people."""
        return False

    def hospitals(self, data: Path | None) -> Mapping[str, Hospital]:
        """The sites "site-01", "site-02", ... that got an image.

        Raises:
            MissingDataError: the file is missing.
            DataError: it is not what it should be.
        """
        every = self.parts(data)
        together = (every.train, every.validation, every.test)
        labels = np.concatenate([part.labels for part in together])
        pixels = np.concatenate([part.planes() for part in together])
        tested = np.arange(len(labels)) >= len(labels) - len(every.test.labels)
        site_of = deal(labels, self.sites, self.concentration, self.seed)
        hospitals = {}
        for site in np.unique(site_of).tolist():
            rows = np.flatnonzero(site_of == site)
            name = f"site-{site + 1:02d}"
            ready = {"label": labels[rows].astype(str).tolist()}
            names = tuple(f"pixel_{pixel}" for pixel in range(pixels.shape[1]))
            records = Records(
                f"MedMNIST {self.images} {name} (images, counted from 1)",
                ArrayCells(ready, names, pixels[rows]),
                first_line=1,
            )
            hospitals[name] = Hospital(records, tuple(tested[rows].tolist()))
        return hospitals

    def parts(self, data: Path | None) -> Images:
        """The set in its official parts; raises as `hospitals`."""
        kind = KINDS[self.images]
        return read_images(_path(kind, data), kind)

    def files(self, data: Path | None) -> Mapping[str, str]:
        """SHA-256 of the file."""
        path = _path(KINDS[self.images], data)
        return {path.name: digest(path)}


def read_images(path: Path, kind: Kind) -> Images:
    """All images of a file.

    Raises:
        DataError: another number or size of images, or a label that is no class.
    """
    pixels = (SIDE, SIDE) if kind.colours == 1 else (SIDE, SIDE, kind.colours)
    wanted = {f"{part}_images": Wanted("u", (f"{part} images", *pixels)) for part in PARTS}
    wanted |= {f"{part}_labels": Wanted("iu", (f"{part} images", 1)) for part in PARTS}
    arrays = read_arrays(path, wanted, PAGE)
    found = []
    for part, size in zip(PARTS, kind.sizes, strict=True):
        labels = arrays[f"{part}_labels"]
        check_count(path, f"images in part '{part}'", len(labels), size, PAGE)
        classes = range(len(kind.classes))
        fits = np.isin(labels, list(classes))
        check_entries(path, f"{part}_labels", fits, f"0 to {len(classes) - 1}", PAGE)
        images = arrays[f"{part}_images"].astype(np.uint8, copy=False)
        shaped = images.reshape(len(images), SIDE, SIDE, kind.colours)
        found.append(Part(shaped, labels[:, 0].astype(np.int64)))
    return Images(kind.classes, *found)


def deal(
    labels: Int[np.ndarray, " images"], sites: int, concentration: float, seed: int
) -> Int[np.ndarray, " images"]:
    """The site of each image: a class is dealt by shares that are a Dirichlet draw of its own."""
    site_of = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels).tolist():
        rng = np.random.default_rng(derive_seed("medmnist", seed, sites, label))
        shares = rng.dirichlet(np.full(sites, concentration))
        members = np.flatnonzero(labels == label)
        site_of[members] = rng.choice(sites, size=len(members), p=shares)
    return site_of


def _path(kind: Kind, data: Path | None) -> Path:
    folder = "medmnist"
    try:
        return locate(PublicFile(folder, kind.name, PAGE), data)
    except MissingDataError:
        if kind.also:
            try:
                return locate(PublicFile(folder, kind.also, PAGE), data)
            except MissingDataError:
                pass
        raise
