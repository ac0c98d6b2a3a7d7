"""The prompt on its way from the request to the text encoder."""


def with_subject(prompt: str, subject_name: str) -> str:
    """`prompt`, after the phrase that post-training tied to its subject; unchanged without a subject.

    Comes after every other change of the prompt (spec/nemo-cosmos1.md, 1.2 step 4).
    """
    return f"A video of sks {subject_name}. {prompt}" if subject_name else prompt
