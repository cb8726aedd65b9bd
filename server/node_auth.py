"""Whether a request is a registered node's, by its headers: asked before a byte of its body is read.

Flower asks, too, and more (which node, and when it signed), but only when it has the whole body in memory.
"""

import binascii
from base64 import b64decode
from collections.abc import Callable, Iterable

from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature

NodeOf = Callable[[bytes], int | None]
"""A public key (PEM) -> the node that it is registered for."""


def is_signed_by_a_node(headers: Iterable[tuple[bytes, bytes]], node_of: NodeOf) -> bool:
    """Whether whoever sent these headers (names in lower case) holds a registered key."""
    given = dict(headers)
    try:
        key, signature = (
            b64decode(given[name.lower().encode()], validate=True)
            for name in (FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER)
        )
        said = given[TIMESTAMP_HEADER.lower().encode()]
        return node_of(key) is not None and verify_signature(bytes_to_public_key(key), said, signature)
    except (KeyError, ValueError, TypeError, binascii.Error):
        return False
