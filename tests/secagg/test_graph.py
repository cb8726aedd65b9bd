"""Who shares masks with whom: symmetric, regular, connected, and the same for everybody."""

from hypothesis import given
from hypothesis import strategies as st
from parties import names_of

from clinimeta.common.secagg.graph import neighbours, order
from clinimeta.common.secagg.suite import SUITES

SUITE = SUITES[1]


@given(n=st.integers(1, 60), half=st.integers(0, 12), t1=st.binary(min_size=32, max_size=32))
def test_the_graph_is_symmetric_regular_and_connected(n: int, half: int, t1: bytes) -> None:
    names = names_of(n)
    ordered = order(SUITE, t1, names)
    assert sorted(ordered) == sorted(names)
    near = {name: neighbours(name, ordered, 2 * half) for name in names}
    degree = n - 1 if half == 0 else min(2 * half, n - 1)
    for name, others in near.items():
        assert name not in others
        assert len(others) == len(set(others)) == degree
        assert list(others) == sorted(others)
        assert all(name in near[other] for other in others)
    reached, border = {names[0]}, [names[0]]
    while border:
        for other in near[border.pop()]:
            if other not in reached:
                reached.add(other)
                border.append(other)
    assert reached == set(names)


def test_the_order_follows_from_t1_and_not_from_who_asks() -> None:
    names = names_of(30)
    assert order(SUITE, b"1" * 32, names) == order(SUITE, b"1" * 32, names[::-1])
    assert order(SUITE, b"1" * 32, names) != order(SUITE, b"2" * 32, names)
