"""SIDER: 1,427 drugs and 27 organ classes of side effects, each a task; 21 train and six are judged.

Source: Kuhn et al., The SIDER database of drugs and side effects, Nucleic Acids Research 2016, grouped by
organ class as MoleculeNet distributes it. Licence: CC BY-NC-SA 4.0, so not for commercial use. Protocol:
2-way k-shot, the last six classes judged by the AUROC on all their other drugs (`molecules.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clinimeta.simulations.datasets import DATASETS
from clinimeta.simulations.datasets.base import Hospital
from clinimeta.simulations.datasets.molecules import Collection, Molecules

SIDER = Collection(
    name="sider",
    molecules=1427,
    assays=(
        "Hepatobiliary disorders",
        "Metabolism and nutrition disorders",
        "Product issues",
        "Eye disorders",
        "Investigations",
        "Musculoskeletal and connective tissue disorders",
        "Gastrointestinal disorders",
        "Social circumstances",
        "Immune system disorders",
        "Reproductive system and breast disorders",
        "Neoplasms benign, malignant and unspecified (incl cysts and polyps)",
        "General disorders and administration site conditions",
        "Endocrine disorders",
        "Surgical and medical procedures",
        "Vascular disorders",
        "Blood and lymphatic system disorders",
        "Skin and subcutaneous tissue disorders",
        "Congenital, familial and genetic disorders",
        "Infections and infestations",
        "Respiratory, thoracic and mediastinal disorders",
        "Psychiatric disorders",
        "Renal and urinary disorders",
        "Pregnancy, puerperium and perinatal conditions",
        "Ear and labyrinth disorders",
        "Cardiac disorders",
        "Nervous system disorders",
        "Injury, poisoning and procedural complications",
    ),
    judged=6,
)


@DATASETS.register("sider")
@dataclass(frozen=True, slots=True)
class Sider:
    """Side effects in 27 organ classes (SIDER, 1,427 drugs), each class a site; the last six are judged.

    The target is `active`; the inputs are `bit_0`, `bit_1`, ..., an ECFP4 fingerprint folded to `bits`.
    """

    bits: Literal[2048, 1024, 512, 256, 128] = 2048

    @property
    def synthetic(self) -> bool:
        """These are drugs that people took."""
        return False

    def hospitals(self, data: Path | None) -> Mapping[str, Hospital]:
        """The organ classes in the published order, each with all drugs.

        Raises:
            MissingDataError: the table is missing, or the fingerprints are and RDKit is not installed.
            DataError: a file is not what it should be.
        """
        return self.molecules(data).sites(self.bits)

    def molecules(self, data: Path | None) -> Molecules:
        """All drugs with all labels; raises as `hospitals`."""
        return SIDER.molecules_of(data)

    def files(self, data: Path | None) -> Mapping[str, str]:
        """SHA-256 of the table and of the fingerprints."""
        return SIDER.files(data)
