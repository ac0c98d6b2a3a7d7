"""What Llama Guard says: its hazard categories, and how its answer is read."""

import re

from cosmos_nemo.stages.item_error import ItemError

CATEGORIES = {
    "S1": "Violent Crimes",
    "S2": "Non-Violent Crimes",
    "S3": "Sex Crimes",
    "S4": "Child Exploitation",
    "S5": "Defamation",
    "S6": "Specialized Advice",
    "S7": "Privacy",
    "S8": "Intellectual Property",
    "S9": "Indiscriminate Weapons",
    "S10": "Hate",
    "S11": "Self-Harm",
    "S12": "Sexual Content",
    "S13": "Elections",
    "S14": "Code Interpreter Abuse",
}
"""Of Llama Guard 3: the MLCommons hazards, and the abuse of code interpreters. Named as in the question that
its own chat template asks, not as in its model card, where three have longer names."""
_SHOWN = 60
"""Characters of an answer that is no judgement: it may be a hundred tokens long."""


def hazards_in(answer: str) -> str | None:
    """None for "safe"; for "unsafe" and its codes a clause such as "category S1 Violent Crimes".

    Whatever contains "unsafe" is unsafe. ItemError for any other answer: it is no judgement.
    """
    if "unsafe" in answer.lower():
        codes = list(dict.fromkeys(code.upper() for code in re.findall(r"\bS\d+\b", answer, re.IGNORECASE)))
        if not codes:
            return "no category given"
        named = ", ".join(f"{code} {CATEGORIES.get(code, 'of unknown name')}" for code in codes)
        return f"{'category' if len(codes) == 1 else 'categories'} {named}"
    if answer.strip().lower() == "safe":
        return None
    found = answer.strip()
    shown = found if len(found) <= _SHOWN else f"{found[:_SHOWN]} ..."
    raise ItemError(
        f"Llama Guard answered neither safe nor unsafe, but {shown!r}: nothing is made of this prompt. "
        "Word it differently."
    )
