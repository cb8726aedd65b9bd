"""Why a hospital's answer does not count, as a code and a sentence that may be shown to anybody."""

from clinimeta.common.records import REFUSALS
from clinimeta.common.secagg.refusal import CODES

LONGEST = 300
SILENT = "silent"
_SENTENCES = {SILENT: "no answer came in time", "not connected": "the hospital was not connected"}


def reason(text: str) -> tuple[str, str]:
    """Code and sentence, of what `flow` or `secagg` wrote down. A code that is not ours is not repeated.

    >>> reason("refused: budget_spent")
    ('budget_spent', 'the answer would cost patients more privacy than they were promised')
    >>> reason("refused: see bed 7")
    ('unknown', 'the hospital said no, for a reason that this version does not know')
    >>> reason("norm 9 is over the limit of 3")
    ('unusable', 'norm 9 is over the limit of 3')
    """
    if text in _SENTENCES:
        return text.replace(" ", "_"), _SENTENCES[text]
    if text.startswith("refused: "):
        code = text.removeprefix("refused: ")
        sentence = REFUSALS.get(code) or CODES.get(code)
        if sentence is None:
            return "unknown", "the hospital said no, for a reason that this version does not know"
        return code, sentence
    return "unusable", "".join(letter for letter in text if letter.isprintable())[:LONGEST]
