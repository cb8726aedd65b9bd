"""beartype as jaxtyping's checker, with an int where a float is asked for (as every type checker allows)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
