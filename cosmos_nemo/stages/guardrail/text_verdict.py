"""What Llama Guard says: its hazard categories, and how its answer is read."""

import re

CATEGORIES = {
    "S1": "Violent Crimes",
    "S2": "Non-Violent Crimes",
    "S3": "Sex-Related Crimes",
    "S4": "Child Sexual Exploitation",
    "S5": "Defamation",
    "S6": "Specialized Advice",
    "S7": "Privacy",
    "S8": "Intellectual Property",
    "S9": "Indiscriminate Weapons",
    "S10": "Hate",
    "S11": "Suicide & Self-Harm",
    "S12": "Sexual Content",
    "S13": "Elections",
    "S14": "Code Interpreter Abuse",
}
"""Of Llama Guard 3: the MLCommons hazards, and the abuse of code interpreters."""


def hazards_in(answer: str) -> str | None:
    """None for "safe"; for "unsafe" and its codes a clause such as "category S1 Violent Crimes".

    Whatever contains "unsafe" is unsafe. ValueError for any other answer: it is no judgement.
    """
    if "unsafe" in answer.lower():
        codes = list(dict.fromkeys(code.upper() for code in re.findall(r"\bS\d+\b", answer, re.IGNORECASE)))
        if not codes:
            return "no category given"
        named = ", ".join(f"{code} {CATEGORIES.get(code, 'of unknown name')}" for code in codes)
        return f"{'category' if len(codes) == 1 else 'categories'} {named}"
    if answer.strip().lower() == "safe":
        return None
    raise ValueError(f"Llama Guard answered neither safe nor unsafe, but {answer.strip()!r}")
