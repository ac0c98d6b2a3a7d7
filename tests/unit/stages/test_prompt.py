from cosmos_nemo.stages.prompt import with_subject


def test_a_subject_is_put_before_the_prompt() -> None:
    prompt = with_subject("The teal robot is cooking.", "teal robot")
    assert prompt == "A video of sks teal robot. The teal robot is cooking."


def test_without_a_subject_the_prompt_stays_as_it_is() -> None:
    assert with_subject("A sunrise.", "") == "A sunrise."
