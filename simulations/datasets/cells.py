"""Arrays as a source gives rows: text cells, a column made when it is looked up and not kept."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ArrayCells(Mapping[str, Sequence[str]]):
    """The columns `ready`, then those of `numbers`, named by `names`; NaN is an empty cell.

    So thousands of pixels or fingerprint bits take the array's memory, not that of as many strings.

    >>> cells = ArrayCells({"id": ["a", "b"]}, ("hr",), np.array([[71.5], [np.nan]]))
    >>> cells["hr"], list(cells)
    (['71.5', ''], ['id', 'hr'])
    """

    ready: Mapping[str, Sequence[str]]
    names: tuple[str, ...]
    numbers: Shaped[np.ndarray, "rows columns"]

    def __getitem__(self, name: str) -> Sequence[str]:
        if name in self.ready:
            return self.ready[name]
        if name not in self.names:
            raise KeyError(name)
        return written(self.numbers[:, self.names.index(name)])

    def __contains__(self, name: object) -> bool:
        return name in self.ready or name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter((*self.ready, *self.names))

    def __len__(self) -> int:
        return len(self.ready) + len(self.names)

    def __repr__(self) -> str:
        """Names only: cells are patients' values."""
        return f"ArrayCells({len(self)} columns of {len(self.numbers)} rows)"


def written(numbers: Shaped[np.ndarray, " rows"]) -> list[str]:
    """Numbers as a file would hold them: the shortest text that gives the number back, NaN empty.

    >>> written(np.array([0.1, np.nan], dtype=np.float32)), written(np.array([7], dtype=np.uint8))
    (['0.1', ''], ['7'])
    """
    texts: list[str] = numbers.astype(str).tolist()
    return ["" if text == "nan" else text for text in texts]
