"""A whole round from fixed seeds, as JSON: run it as a script to print `tests/secagg/vectors/suite1.json`.

Every secret is in it, so that another implementation can check each step. Write it anew only for a new suite.
"""

import json
from dataclasses import fields, replace
from typing import Any

from parties import MODEL, TODAY, consortium, contribution_of, quantised, terms_of

from clinimeta.common.secagg.messages import Advert, Shares
from clinimeta.common.secagg.packing import decode
from clinimeta.common.secagg.protocol import one_round, play
from clinimeta.common.secagg.session import Circle, Session

SILENT = "lund"  # from phase `masked` on


def transcript() -> dict[str, Any]:
    """The round of four sites, one of which drops out after it has shared."""
    roster, sites = consortium(4)
    terms = terms_of(roster)
    parts: dict[str, Any] = {name: {} for name in sites}
    adverts: dict[str, Advert] = {}

    def ask(requests: Any) -> Any:
        answers = {}
        for name, request in requests.items():
            if "Masked" in type(request).__name__ and name == SILENT:
                continue
            answer = sites[name].answer(request, lambda name=name: contribution_of(name), MODEL)
            answers[name] = answer
            for field in fields(answer):
                if field.name not in ("key", "site"):
                    parts[name][field.name] = _plain(getattr(answer, field.name))
            if isinstance(answer, Advert):
                adverts[name] = answer
                parts[name]["advert_signature"] = parts[name].pop("signature")
            if isinstance(answer, Shares):
                session = decode(Session, sites[name].journal.load(terms.key))
                for secret in ("channel_secret", "mask_secret", "self_seed"):
                    parts[name][secret] = getattr(session, secret).hex()
        return answers

    outcome = play(one_round(terms, roster, TODAY, sorted(sites), MODEL), ask)
    for name, site in sites.items():
        given = contribution_of(name)
        parts[name]["public"] = site.identity.public.hex()
        parts[name]["rounding_seed"] = site.rounding_seed.hex()
        parts[name]["vector"] = [float(x) for x in given.vector]
        parts[name]["columns"] = given.columns
        parts[name]["rounded"] = quantised(terms, site, given).tolist()
    circle = Circle.of(terms, [adverts[name] for name in sorted(adverts)])
    t2 = circle.t2(MODEL, sorted(sites))
    values = {field.name: _plain(getattr(terms, field.name)) for field in fields(terms)}
    values["columns"] = [[column.name, column.bound] for column in terms.columns]
    return {
        "suite": terms.primitives.name,
        "terms": values,
        "terms_bytes": terms.to_bytes().hex(),
        "td": terms.digest.hex(),
        "t1": circle.t1.hex(),
        "t2": t2.hex(),
        "t3": circle.t3(t2, outcome.survivors).hex(),
        "model_digest": MODEL.hex(),
        "roster": roster.to_bytes().decode(),
        "members": sorted(sites),
        "survivors": list(outcome.survivors),
        "sites": parts,
        "sum": outcome.words.tolist(),
        "sum_vector": outcome.total.vector.tolist(),
        "sum_columns": dict(outcome.total.columns),
        "must_fail": _must_fail(parts, terms),
    }


def _must_fail(parts: dict[str, Any], terms: Any) -> list[dict[str, Any]]:
    """Variants of single steps that every implementation must refuse."""
    data, other = terms.to_bytes(), replace(terms, round=8)
    advert = {k: parts["graz"][k] for k in ("channel_key", "mask_key", "nonce", "advert_signature")}
    lund = {k: parts["lund"][k] for k in ("channel_key", "mask_key", "nonce", "advert_signature")}
    sealed = bytes.fromhex(parts["graz"]["sealed"]["bern"])
    return [
        {"kind": "advert", "why": "a mask key of another", "site": "graz"}
        | advert
        | {"mask_key": lund["mask_key"]},
        {"kind": "advert", "why": "a channel key of another", "site": "graz"}
        | advert
        | {"channel_key": lund["channel_key"]},
        {"kind": "advert", "why": "another nonce", "site": "graz"} | advert | {"nonce": bytes(16).hex()},
        {"kind": "advert", "why": "another site's advert", "site": "graz", **lund},
        {"kind": "advert", "why": "keys swapped", "site": "graz"}
        | advert
        | {"channel_key": advert["mask_key"], "mask_key": advert["channel_key"]},
        {
            "kind": "advert",
            "why": "for another round",
            "site": "graz",
            "terms": other.to_bytes().hex(),
            **advert,
        },
        {
            "kind": "share",
            "why": "a flipped bit",
            "from": "graz",
            "to": "bern",
            "sealed": _flip(sealed).hex(),
        },
        {"kind": "share", "why": "cut short", "from": "graz", "to": "bern", "sealed": sealed[:-1].hex()},
        {"kind": "share", "why": "from another", "from": "köln", "to": "bern", "sealed": sealed.hex()},
        {"kind": "share", "why": "sent back", "from": "bern", "to": "graz", "sealed": sealed.hex()},
        {
            "kind": "confirm",
            "why": "other survivors",
            "site": "bern",
            "survivors": ["bern", "graz", "lund"],
            "signature": parts["bern"]["signature"],
        },
        {
            "kind": "confirm",
            "why": "another site's signature",
            "site": "graz",
            "survivors": ["bern", "graz", "köln"],
            "signature": parts["bern"]["signature"],
        },
        {"kind": "terms", "why": "a byte too many", "bytes": (data + b"\0").hex()},
        {"kind": "terms", "why": "a byte too few", "bytes": data[:-1].hex()},
        {"kind": "terms", "why": "an unknown suite", "bytes": data.replace(_word(1), _word(9), 1).hex()},
        {"kind": "terms", "why": "no bound", "bytes": data.replace(b"\x40" + bytes(7), bytes(8), 1).hex()},
        {"kind": "vector", "why": "over its bound", "vector": [0.0, 2.5, 0.0, 0.0, 0.0]},
    ]


def _word(n: int) -> bytes:
    return n.to_bytes(8, "big")


def _flip(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: item.hex() for name, item in value.items()}
    return value


if __name__ == "__main__":
    print(json.dumps(transcript(), indent=1, ensure_ascii=False, sort_keys=True))
