"""Suite 1 once more, from its description alone; imports nothing of clinimeta. Checks a transcript."""

import hashlib
import math
import struct
from typing import Any

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

P, SUITE = 2**256 + 297, b"clinimeta-secagg-1"
b = bytes.fromhex


def pack(*parts: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def H(label: str, *parts: bytes) -> bytes:  # noqa: N802
    return hashlib.sha256(pack(SUITE, label.encode(), *parts)).digest()


def kdf(secret: bytes, salt: bytes, label: str, *names: str) -> bytes:
    info = pack(SUITE, label.encode(), *(name.encode() for name in names))
    return HKDF(SHA256(), 32, salt, info).derive(secret)


def dh(secret: str, public: str) -> bytes:
    return X25519PrivateKey.from_private_bytes(b(secret)).exchange(
        X25519PublicKey.from_public_bytes(b(public))
    )


def stream(key: bytes, size: int) -> bytes:
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(size))


def words(key: bytes, count: int) -> tuple[int, ...]:
    return struct.unpack(f"<{count}I", stream(key, 4 * count))


def terms_bytes(t: dict[str, Any]) -> bytes:
    u64, f64 = (lambda v: struct.pack(">Q", v)), (lambda v: struct.pack(">d", v))
    columns = pack(*(pack(name.encode(), f64(bound)) for name, bound in t["columns"]))
    head = (u64(t["suite"]), t["run"].encode(), u64(t["round"]), u64(t["attempt"]), u64(t["dim"]))
    rest = (u64(t["n_max"]), u64(t["min_cohort"]), t["threshold"].encode(), u64(t["degree"]))
    ends = (b(t["roster_digest"]), b(t["plan_digest"]), pack(*(name.encode() for name in t["public"])))
    return pack(*head, f64(t["bound"]), columns, *rest, *ends)


class Checker:
    """The round's digests, computed from the parts; each check is a method that says whether it holds."""

    def __init__(self, v: dict[str, Any]) -> None:
        self.v, self.sites, self.names = v, v["sites"], sorted(v["sites"])
        self.data = terms_bytes(v["terms"])
        self.td = H("terms", self.data)
        fields = ("channel_key", "mask_key", "nonce", "advert_signature")
        adverts = [pack(n.encode(), *(b(self.sites[n][f]) for f in fields)) for n in self.names]
        self.t1 = H("adverts", self.td, *adverts)
        self.t2 = H("masked", self.t1, b(v["model_digest"]), *(n.encode() for n in v["members"]))
        self.threshold = 2 * len(self.names) // 3 + 1

    def t3(self, survivors: list[str]) -> bytes:
        return H("survivors", self.t2, *(n.encode() for n in survivors))

    def signed(self, site: str, message: bytes, signature: str) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(b(self.sites[site]["public"])).verify(b(signature), message)
        except InvalidSignature:
            return False
        return True

    def advert(self, site: str, a: dict[str, Any]) -> bool:
        td = H("terms", b(a["terms"])) if "terms" in a else self.td
        keys = b(a["channel_key"]), b(a["mask_key"]), b(a["nonce"])
        return self.signed(site, H("advert", td, site.encode(), *keys), a["advert_signature"])

    def confirm(self, site: str, survivors: list[str], signature: str) -> bool:
        return self.signed(site, H("confirm", self.t3(survivors), site.encode()), signature)

    def share(self, sender: str, receiver: str, sealed: str) -> bytes | None:
        shared = dh(self.sites[receiver]["channel_secret"], self.sites[sender]["channel_key"])
        key = kdf(shared, self.t1, "channel", sender, receiver)
        context = H("share", self.t1, sender.encode(), receiver.encode())
        try:
            return ChaCha20Poly1305(key).decrypt(bytes(12), b(sealed), context)
        except InvalidTag:
            return None

    def secret(self, shares: dict[str, str]) -> bytes:
        points = {self.names.index(n) + 1: int(s, 16) for n, s in list(shares.items())[: self.threshold]}
        total = 0
        for x, y in points.items():
            others = [z for z in points if z != x]
            total += y * math.prod(others) * pow(math.prod(z - x for z in others), -1, P)
        return (total % P).to_bytes(32, "big")

    def rounded(self, site: str) -> list[int]:
        s, t = self.sites[site], self.v["terms"]
        most = (2**31 - 1) // t["n_max"] - 1
        values = [(x, t["bound"]) for x in s["vector"]] + [
            (s["columns"][n], bound) for n, bound in t["columns"]
        ]
        if any(not abs(x) <= bound for x, bound in values):
            raise ValueError("over its bound")
        key = kdf(b(s["rounding_seed"]), b"", "rounding", t["run"], str(t["round"]), site)
        chance = struct.unpack(f"<{len(values)}H", stream(key, 2 * len(values)))
        pairs = zip(values, chance, strict=True)
        return [math.floor(x * (most / bound) + r / 2**16) % 2**32 for (x, bound), r in pairs]

    def masks(self, site: str) -> list[int]:
        s, size = self.sites[site], len(self.v["sum"])
        total = list(words(kdf(b(s["self_seed"]), self.t2, "self", site), size))
        for peer in set(self.v["members"]) - {site}:
            shared = dh(s["mask_secret"], self.sites[peer]["mask_key"])
            pair = words(kdf(shared, self.t2, "pair", min(site, peer), max(site, peer)), size)
            sign = 1 if site < peer else -1
            total = [a + sign * m for a, m in zip(total, pair, strict=True)]
        return total
