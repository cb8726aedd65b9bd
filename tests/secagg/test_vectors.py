"""Suite 1 in fixed numbers: a whole round that a second implementation confirms, and steps that must fail."""

import copy
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parties import MODEL, TODAY, consortium, contribution_of, terms_of
from second_opinion import Checker, H
from transcript import transcript

from clinimeta.common.errors import BoundError, RecordError
from clinimeta.common.secagg.identity import Roster, is_signed
from clinimeta.common.secagg.messages import Advert
from clinimeta.common.secagg.packing import decode
from clinimeta.common.secagg.protocol import run
from clinimeta.common.secagg.ring import Contribution, Ring
from clinimeta.common.secagg.session import Circle, advert_message
from clinimeta.common.secagg.terms import Terms

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "suite1.json").read_text("utf-8"))
SITES = VECTORS["sites"]
CHECK = Checker(VECTORS)
MUST_FAIL = {f"{case['kind']}: {case['why']}": case for case in VECTORS["must_fail"]}


def test_our_code_gives_the_vectors() -> None:
    assert json.loads(json.dumps(transcript())) == VECTORS


def test_the_digests_are_those_of_the_second_implementation() -> None:
    assert CHECK.data.hex() == VECTORS["terms_bytes"]
    assert CHECK.td.hex() == VECTORS["td"]
    assert CHECK.t1.hex() == VECTORS["t1"]
    assert CHECK.t2.hex() == VECTORS["t2"]
    assert CHECK.t3(VECTORS["survivors"]).hex() == VECTORS["t3"]


@pytest.mark.parametrize("site", SITES)
def test_a_sites_messages_are_those_of_the_second_implementation(site: str) -> None:
    s = SITES[site]
    assert CHECK.advert(site, s)
    for peer in set(SITES) - {site}:
        pair = CHECK.share(site, peer, s["sealed"][peer])
        assert pair is not None
        assert len(pair) == 66
    assert H("b", CHECK.t1, site.encode(), bytes.fromhex(s["self_seed"])).hex() == s["commitment"]
    assert CHECK.rounded(site) == s["rounded"]
    if site in VECTORS["survivors"]:
        masked = [(q + m) % 2**32 for q, m in zip(s["rounded"], CHECK.masks(site), strict=True)]
        assert struct.pack(f"<{len(masked)}I", *masked).hex() == s["words"]
        assert CHECK.confirm(site, VECTORS["survivors"], s["signature"])
        assert sorted(s["self_shares"]) == VECTORS["survivors"]
        assert sorted(s["key_shares"]) == sorted(set(SITES) - set(VECTORS["survivors"]))
    else:
        assert "words" not in s


def test_the_shares_give_the_secrets_and_the_sum_is_the_survivors() -> None:
    survivors = VECTORS["survivors"]
    for owner in SITES:
        kind, secret = ("self_shares", "self_seed") if owner in survivors else ("key_shares", "mask_secret")
        shares = {holder: SITES[holder][kind][owner] for holder in survivors}
        assert CHECK.secret(shares).hex() == SITES[owner][secret]
    total = [sum(q) % 2**32 for q in zip(*(SITES[site]["rounded"] for site in survivors), strict=True)]
    assert total == VECTORS["sum"]
    real = sum(np.array(SITES[site]["vector"]) for site in survivors)
    assert VECTORS["sum_vector"] == pytest.approx(real, abs=1e-6)


def accepted(case: dict[str, Any]) -> tuple[bool, bool]:
    """Whether the second implementation and ours accept the step."""
    kind, roster = case["kind"], Roster.from_bytes(VECTORS["roster"].encode())
    terms = Terms.from_bytes(bytes.fromhex(case.get("terms", VECTORS["terms_bytes"])))
    suite = terms.primitives
    fields = ("channel_key", "mask_key", "nonce", "advert_signature")
    if kind == "advert":
        keys = [bytes.fromhex(case[name]) for name in fields]
        member = roster.member(case["site"])
        assert member is not None
        return CHECK.advert(case["site"], case), is_signed(
            member.key, advert_message(terms, case["site"], *keys[:3]), keys[3]
        )
    adverts = [Advert(n, *(bytes.fromhex(SITES[n][name]) for name in fields)) for n in sorted(SITES)]
    circle = Circle.of(terms, adverts)
    if kind == "share":
        receiver, sender = SITES[case["to"]], case["from"]
        shared = suite.exchange(bytes.fromhex(receiver["channel_secret"]), circle.adverts[sender].channel_key)
        assert shared is not None
        key = suite.derive(shared, circle.t1, "channel", sender, case["to"])
        opened = suite.unseal(key, bytes.fromhex(case["sealed"]), circle.share_context(sender, case["to"]))
        return CHECK.share(sender, case["to"], case["sealed"]) is not None, opened is not None
    if kind == "confirm":
        member = roster.member(case["site"])
        assert member is not None
        t3 = circle.t3(bytes.fromhex(VECTORS["t2"]), case["survivors"])
        ours = is_signed(member.key, circle.confirmation(t3, case["site"]), bytes.fromhex(case["signature"]))
        return CHECK.confirm(case["site"], case["survivors"], case["signature"]), ours
    if kind == "vector":
        changed = copy.deepcopy(VECTORS)
        changed["sites"]["bern"]["vector"] = case["vector"]
        given = Contribution(np.array(case["vector"]), SITES["bern"]["columns"])
        with pytest.raises(ValueError, match="bound"):
            Checker(changed).rounded("bern")
        with pytest.raises(BoundError):
            Ring.of(terms).quantise(given, bytes(32))
        return False, False
    with pytest.raises(RecordError):
        Terms.from_bytes(bytes.fromhex(case["bytes"]))
    return bytes.fromhex(case["bytes"]) == CHECK.data, False


@pytest.mark.parametrize("name", MUST_FAIL)
def test_what_must_fail_fails_in_both_implementations(name: str) -> None:
    assert accepted(MUST_FAIL[name]) == (False, False)


def test_each_kind_of_step_passes_where_nothing_is_wrong() -> None:
    graz, bern = SITES["graz"], SITES["bern"]
    good = [
        {"kind": "advert", "site": "graz", **graz},
        {"kind": "share", "from": "graz", "to": "bern", "sealed": graz["sealed"]["bern"]},
        {
            "kind": "confirm",
            "site": "bern",
            "survivors": VECTORS["survivors"],
            "signature": bern["signature"],
        },
    ]
    assert [accepted(case) for case in good] == [(True, True)] * 3
    assert decode(Terms, CHECK.data) == Terms.from_bytes(bytes.fromhex(VECTORS["terms_bytes"]))


def test_other_secrets_give_the_same_sum() -> None:
    """Masks come and go: only rounding, which is a function of names, is in the result."""
    roster, fresh = consortium(4)
    for site in fresh.values():
        site.random_bytes(100)  # other secrets from here on
    given = {name: contribution_of(name) for name in fresh}
    outcome = run(terms_of(roster), roster, TODAY, fresh, given, MODEL, {"lund": "masked"})
    assert outcome.words.tolist() == VECTORS["sum"]
