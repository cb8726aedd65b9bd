"""A site's No, with a code from a fixed list: what a peer may learn about why."""

from collections.abc import Mapping

CODES: Mapping[str, str] = {
    "bad_terms": "the terms cannot be read",
    "suite_not_allowed": "the policy does not allow this suite",
    "plan_not_approved": "the site has not approved this plan",
    "public_not_allowed": "the terms make public what the policy keeps",
    "too_large": "the vector has more coordinates than the policy allows",
    "graph_not_allowed": "the policy does not allow so sparse a graph of masks",
    "cohort_too_small": "the terms allow a smaller cohort than the policy",
    "other_roster": "the terms name another roster than the site's",
    "round_closed": "this round was opened already, or a later attempt of it was begun",
    "answered_before": "this phase was answered before",
    "unknown_round": "this round is not open at the site",
    "out_of_order": "this phase is not the next one",
    "duplicate_site": "a site occurs twice, or the sites are not in order of their names",
    "too_few_sites": "fewer sites than the terms or the policy ask for",
    "too_many_sites": "more sites than the terms allow",
    "not_in_roster": "a site is not in the roster",
    "key_not_valid": "a site's key is revoked or out of date",
    "bad_signature": "an advert is not signed by its site for these terms",
    "own_advert_changed": "the site's own advert is missing or was changed",
    "bad_public_key": "a site's public key is not usable",
    "members_unknown": "a member has not advertised, occurs twice or is out of order",
    "self_not_member": "the site itself is not among the members",
    "too_few_members": "too few members to stay over the threshold",
    "shares_do_not_fit": "the shares are not those of the members",
    "share_not_authentic": "a share is not what its sender sealed",
    "bad_vector": "the site's own vector is not finite, over its bound or of another shape",
    "survivors_unknown": "a survivor is not a member, occurs twice or is out of order",
    "self_not_survivor": "the site itself is not among the survivors",
    "too_few_survivors": "too few survivors to stay over the threshold",
    "too_few_confirmed": "too few sites have confirmed the same model, members and survivors",
}
"""Code -> what it says. Each is raised in one place, and has a test of its own."""


class Refused(Exception):  # noqa: N818 (it is an answer on its way out, not an error)
    """The site does not answer this request; `sentence` never holds more than names and counts."""

    def __init__(self, code: str, sentence: str = "") -> None:
        assert code in CODES
        super().__init__(sentence or CODES[code])
        self.code, self.sentence = code, sentence or CODES[code]
