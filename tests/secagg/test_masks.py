"""Masks: the published keystream, uniform words, and sums from which every mask goes again."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from clinimeta.common.secagg.masks import apply_masks, keystream_into, stream

KEYS = st.lists(st.binary(min_size=32, max_size=32), max_size=4)


def test_the_keystream_is_that_of_nist_sp_800_38a_f_5_5() -> None:
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    plain = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    sealed = bytes.fromhex(
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    assert stream(key, counter).update(bytes(64)) == bytes(a ^ b for a, b in zip(plain, sealed, strict=True))


def obvious(key: bytes, words: int) -> np.ndarray:
    stream_of = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(stream_of.update(bytes(4 * words)), "<u4")


@given(size=st.sampled_from([1, 3, 65_535, 65_536, 65_537, 140_000]), plus=KEYS, minus=KEYS)
@settings(max_examples=40)
def test_masks_are_added_and_subtracted_as_the_obvious_way_has_it(
    size: int, plus: list[bytes], minus: list[bytes]
) -> None:
    start = np.arange(size, dtype=np.uint32) * np.uint32(2_654_435_761)
    words, expected = start.copy(), start.copy()
    for key in plus:
        expected += obvious(key, size)
    for key in minus:
        expected -= obvious(key, size)
    apply_masks(words, plus, minus)
    assert (words == expected).all()
    apply_masks(words, minus, plus)
    assert (words == start).all()


@given(cuts=st.lists(st.integers(0, 300_000), max_size=5))
@settings(max_examples=30)
def test_a_stream_that_is_read_in_pieces_is_one_stream(cuts: list[int]) -> None:
    fill, read = keystream_into(bytes(32)), bytearray(sum(cuts))
    at = 0
    for cut in cuts:
        fill(memoryview(read)[at : at + cut])
        at += cut
    assert bytes(read) == stream(bytes(32)).update(bytes(len(read)))


@pytest.mark.parametrize("what", ["mask", "masked zeros", "masked ones"])
def test_masked_words_are_uniform(what: str) -> None:
    words = np.full(250_000, what == "masked ones", np.uint32)
    apply_masks(words, [bytes([7]) * 32], [] if what == "mask" else [bytes([8]) * 32])
    for shift in (0, 8, 16, 24):
        counts = np.bincount((words >> np.uint32(shift)) & np.uint32(255), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-3
    real = words / 2**32
    assert stats.kstest(real, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(real[:-1], real[1:])[0, 1]) < 4 / np.sqrt(len(real))
