"""The guards of prompts and of videos (spec/predict1-diffusion.md, 7.4)."""

WORD_LISTS = "blocklist"
"""The folder of the text guard's word lists inside the released guardrails' folder."""
