"""A folder of CSV files, one a hospital: a simulation on your own tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from clinimeta.client.sources.csv_files import is_csv, read_csv
from clinimeta.common.errors import DataError, MissingDataError, StudyError
from clinimeta.simulations.datasets import DATASETS
from clinimeta.simulations.datasets.base import Hospital
from clinimeta.simulations.datasets.locate import VARIABLE, data_folder, digest


@DATASETS.register("csv_folder")
@dataclass(frozen=True, slots=True)
class CsvFolder:
    """A folder in which every `*.csv` or `*.csv.gz` is one hospital, named as the file.

    `folder` is inside the one given by `--data` or `CLINIMETA_DATA`; empty means that folder itself.
    """

    folder: str = ""

    @property
    def synthetic(self) -> bool:
        """These are people."""
        return False

    def hospitals(self, data: Path | None) -> Mapping[str, Hospital]:
        """All hospitals, in the order of their names.

        Raises:
            MissingDataError: no folder was given, it does not exist, or no CSV file is in it.
            DataError: two files name the same hospital, or one cannot be read.
            StudyError: `folder` leads out of the data folder.
        """
        return {name: Hospital(read_csv(path)) for name, path in self._paths(data).items()}

    def files(self, data: Path | None) -> Mapping[str, str]:
        """SHA-256 of every file."""
        return {path.name: digest(path) for path in self._paths(data).values()}

    def _paths(self, data: Path | None) -> dict[str, Path]:
        folder = self._resolve(data)
        paths: dict[str, Path] = {}
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if is_csv(path) and path.is_file():
                name = hospital_name(path)
                if name in paths:
                    raise DataError(
                        f"two files name the hospital '{name}'",
                        where=str(folder),
                        found=f"{paths[name].name} and {path.name}",
                        remedy="keep one of them",
                    )
                paths[name] = path
        if not paths:
            raise MissingDataError(
                "there is no hospital's table",
                where=str(folder),
                found="no *.csv or *.csv.gz file" if folder.is_dir() else "no such folder",
                expected="one CSV file a hospital",
                remedy=f"put the files there, or give their folder by --data or {VARIABLE}",
            )
        return {name: paths[name] for name in sorted(paths)}

    def _resolve(self, data: Path | None) -> Path:
        inside = Path(self.folder)
        if inside.is_absolute() or ".." in inside.parts:  # a study comes from others; --data does not
            raise StudyError(
                "the folder leads out of the data folder",
                where="data set 'csv_folder', key 'folder'",
                expected="a folder inside the one given by --data",
                remedy=f"give the outer folder by --data or {VARIABLE}",
            )
        root = data_folder(data)
        if root is None:
            raise MissingDataError(
                "no data folder is given",
                where=f"looked at --data and {VARIABLE}",
                remedy=f"give the folder of the hospitals' CSV files by --data or {VARIABLE}",
            )
        return root / inside


def hospital_name(path: Path) -> str:
    """The file's name without its suffix.

    >>> hospital_name(Path("data/ulm.v2.csv.gz"))
    'ulm.v2'
    """
    name = path.name.lower().removesuffix(".gz").removesuffix(".csv")
    return path.name[: len(name)]
