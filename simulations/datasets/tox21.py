"""Tox21: 7,831 molecules in 12 toxicity assays, each a task; nine train and three are judged.

Source: Tox21 Data Challenge 2014 (Huang et al., Frontiers in Environmental Science 2016), as MoleculeNet
distributes it. Licence: public domain (NIH). Protocol: 2-way k-shot, the last three assays (SR-HSE,
SR-MMP, SR-p53) judged by the AUROC on all their other measured molecules (`molecules.py`). RDKit cannot read
8 of the SMILES.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clinimeta.simulations.datasets import DATASETS
from clinimeta.simulations.datasets.base import Hospital
from clinimeta.simulations.datasets.molecules import Collection, Molecules

TOX21 = Collection(
    name="tox21",
    molecules=7831,
    assays=(
        *("NR-AR", "NR-AR-LBD", "NR-AhR", "NR-Aromatase", "NR-ER", "NR-ER-LBD", "NR-PPAR-gamma", "SR-ARE"),
        *("SR-ATAD5", "SR-HSE", "SR-MMP", "SR-p53"),
    ),
    judged=3,
)


@DATASETS.register("tox21")
@dataclass(frozen=True, slots=True)
class Tox21:
    """Toxicity in 12 assays (Tox21, 7,831 molecules), each assay a site; the last three are judged.

    The target is `active`; the inputs are `bit_0`, `bit_1`, ..., an ECFP4 fingerprint folded to `bits`.
    """

    bits: Literal[2048, 1024, 512, 256, 128] = 2048

    @property
    def synthetic(self) -> bool:
        """These are molecules that were measured."""
        return False

    def hospitals(self, data: Path | None) -> Mapping[str, Hospital]:
        """The assays in the published order, each with the molecules that it measured.

        Raises:
            MissingDataError: the table is missing, or the fingerprints are and RDKit is not installed.
            DataError: a file is not what it should be.
        """
        return self.molecules(data).sites(self.bits)

    def molecules(self, data: Path | None) -> Molecules:
        """All molecules with all labels; raises as `hospitals`."""
        return TOX21.molecules_of(data)

    def files(self, data: Path | None) -> Mapping[str, str]:
        """SHA-256 of the table and of the fingerprints."""
        return TOX21.files(data)
