"""A hospital's keys, made where they are used; only public ones are ever sent."""

import os

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from clinimeta.client.config import Home
from clinimeta.common.private_files import read_secret, write_secret
from clinimeta.common.secagg.identity import Identity


def make_keys(home: Home) -> None:
    """New keys in the hospital's folder: its node's, and its own.

    Raises:
        UserError: there are some already.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    write_secret(home.node_key, pem)
    write_secret(home.identity_key, os.urandom(32))


def node_key(home: Home) -> ec.EllipticCurvePrivateKey:
    """The SuperNode's key.

    Raises:
        UserError: it is missing, or open to others.
    """
    key = serialization.load_ssh_private_key(read_secret(home.node_key), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey), "make_keys makes no other"
    return key


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public half, as flwr sends it."""
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def identity(home: Home, name: str) -> Identity:
    """The hospital's own key.

    Raises:
        UserError: it is missing, or open to others.
    """
    return Identity(name, read_secret(home.identity_key))
