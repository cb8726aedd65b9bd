"""Secret sharing: any t shares give the secret, t - 1 fit every secret, wrong ones are seen through."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parties import from_seed

from clinimeta.common.secagg.recovery import recover
from clinimeta.common.secagg.shamir import PRIME, SHARE_BYTES, combine, split

SECRETS = st.binary(min_size=32, max_size=32)


def test_the_modulus_is_the_first_prime_over_2_to_256() -> None:
    def is_prime(n: int) -> bool:  # Miller-Rabin, bases from a fixed seed
        odd, twos = n - 1, 0
        while odd % 2 == 0:
            odd, twos = odd // 2, twos + 1
        rng = random.Random(0)  # noqa: S311
        for _ in range(40):
            x = pow(rng.randrange(2, n - 1), odd, n)
            if x in (1, n - 1):
                continue
            for _ in range(twos - 1):
                x = x * x % n
                if x == n - 1:
                    break
            else:
                return False
        return True

    assert is_prime(PRIME)
    assert not any(is_prime(n) for n in range(2**256 + 1, PRIME, 2))
    assert PRIME < 2 ** (8 * SHARE_BYTES)


@given(secret=SECRETS, n=st.integers(1, 12), data=st.data())
def test_any_t_shares_give_the_secret(secret: bytes, n: int, data: st.DataObject) -> None:
    t = data.draw(st.integers(1, n))
    points = data.draw(st.lists(st.integers(1, 500), min_size=n, max_size=n, unique=True))
    shares = dict(zip(points, split(secret, t, points, from_seed("shamir")), strict=True))
    chosen = tuple(data.draw(st.permutations(points))[:t])
    assert combine(chosen, [shares[point] for point in chosen]) == secret


@given(secret=SECRETS, other=SECRETS)
def test_one_share_fewer_fits_every_secret_equally(secret: bytes, other: bytes) -> None:
    """Beside t - 1 shares, every secret is possible: some last share makes it so."""
    points = [1, 2, 3]
    shares = split(secret, 3, points, from_seed("hiding"))
    at_zero_and_two = [int.from_bytes(other, "big"), *(int.from_bytes(s, "big") for s in shares[:2])]
    last = 0  # the value at 3 of the parabola through (0, other), (1, s1), (2, s2)
    for i, x in enumerate((0, 1, 2)):
        term = at_zero_and_two[i]
        for y in {0, 1, 2} - {x}:
            term = term * (3 - y) * pow(x - y, -1, PRIME) % PRIME
        last += term
    forged = (last % PRIME).to_bytes(33, "big")
    assert combine((1, 2, 3), [*shares[:2], forged]) == other


def test_every_split_is_another_one() -> None:
    draw = from_seed("fresh")
    assert split(bytes(32), 2, [1, 2], draw) != split(bytes(32), 2, [1, 2], draw)


@given(secret=SECRETS, bad=st.sets(st.integers(1, 10), max_size=3), data=st.data())
@settings(max_examples=60)
def test_wrong_shares_are_tried_around(secret: bytes, bad: set[int], data: st.DataObject) -> None:
    points = list(range(1, 11))
    shares = dict(zip(points, split(secret, 7, points, from_seed("bad")), strict=True))
    for point in bad:
        shares[point] = data.draw(st.sampled_from([bytes(33), b"\xff" * 33, b"", bytes(34)]))
    distrusted: set[int] = set()
    assert recover(shares, 7, lambda found: found == secret, distrusted) == secret
    assert distrusted <= bad


def test_one_wrong_share_among_fifty_is_found_and_left_out_afterwards() -> None:
    points = list(range(1, 51))
    distrusted: set[int] = set()
    for i in range(3):
        secret = bytes([i]) * 32
        shares = dict(zip(points, split(secret, 34, points, from_seed("fifty", i)), strict=True))
        shares[1] = shares[2]
        assert recover(shares, 34, lambda found, secret=secret: found == secret, distrusted) == secret
        assert distrusted == {1}


@pytest.mark.parametrize("present", [0, 6])
def test_too_few_shares_are_no_secret(present: int) -> None:
    points = list(range(1, 11))
    shares = dict(list(zip(points, split(bytes(32), 7, points, from_seed("few")), strict=True))[:present])
    assert recover(shares, 7, lambda _: True) is None


def test_too_many_wrong_shares_are_no_secret() -> None:
    points = list(range(1, 11))
    shares = dict(zip(points, split(bytes(32), 7, points, from_seed("many")), strict=True))
    shares |= dict.fromkeys((1, 2, 3, 4), bytes(33))
    assert recover(shares, 7, lambda found: found == bytes(32)) is None
