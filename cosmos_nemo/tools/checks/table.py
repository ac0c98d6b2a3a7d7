"""CHECKS: what a reference file says it is for -> the function that checks it.

Each function imports its module when called, so that a check costs only the imports it needs.
"""

from dataclasses import dataclass

from cosmos_nemo.tools.checks import Case, CheckFunction, Options, Outputs, Tensors


@dataclass(frozen=True, kw_only=True)
class Check:
    function: CheckFunction
    takes_weights: bool = False
    """Whether a checkpoint can stand in for the weights inside the reference file."""


def _ar_sampling(case: Case, tensors: Tensors, options: Options) -> Outputs:
    from cosmos_nemo.tools.checks import ar_sampling

    return ar_sampling.check(case, tensors, options)


def _ar_transformer(case: Case, tensors: Tensors, options: Options) -> Outputs:
    from cosmos_nemo.tools.checks import ar_transformer

    return ar_transformer.check(case, tensors, options)


def _predict1_dit(case: Case, tensors: Tensors, options: Options) -> Outputs:
    from cosmos_nemo.tools.checks import predict1_dit

    return predict1_dit.check(case, tensors, options)


def _predict1_rope(case: Case, tensors: Tensors, options: Options) -> Outputs:
    from cosmos_nemo.tools.checks import predict1_rope

    return predict1_rope.check(case, tensors, options)


def _predict1_res(case: Case, tensors: Tensors, options: Options) -> Outputs:
    from cosmos_nemo.tools.checks import predict1_res

    return predict1_res.check(case, tensors, options)


def _predict1_sample(case: Case, tensors: Tensors, options: Options) -> Outputs:
    from cosmos_nemo.tools.checks import predict1_sample

    return predict1_sample.check(case, tensors, options)


def _predict1_tokenizer(case: Case, tensors: Tensors, options: Options) -> Outputs:
    from cosmos_nemo.tools.checks import predict1_tokenizer

    return predict1_tokenizer.check(case, tensors, dtype=options.dtype, device=options.device)


def _predict2_dit(case: Case, tensors: Tensors, options: Options) -> Outputs:
    from cosmos_nemo.tools.checks import predict2_dit

    return predict2_dit.check(case, tensors, options)


def _predict2_preprocess(case: Case, tensors: Tensors, options: Options) -> Outputs:
    from cosmos_nemo.tools.checks import predict2_preprocess

    return predict2_preprocess.check(case, tensors, options)


def _predict2_solver(case: Case, tensors: Tensors, options: Options) -> Outputs:
    from cosmos_nemo.tools.checks import predict2_solver

    return predict2_solver.check(case, tensors, options)


def _predict2_vae(case: Case, tensors: Tensors, options: Options) -> Outputs:
    from cosmos_nemo.tools.checks import predict2_vae

    return predict2_vae.check(case, tensors, dtype=options.dtype, device=options.device)


def _ar_diffusion_decoder(case: Case, tensors: Tensors, options: Options) -> Outputs:
    from cosmos_nemo.tools.checks import ar_diffusion_decoder

    return ar_diffusion_decoder.check(case, tensors, options)


def _ar_fsq(case: Case, tensors: Tensors, options: Options) -> Outputs:
    from cosmos_nemo.tools.checks import ar_fsq

    return ar_fsq.check(case, tensors, device=options.device)


def _ar_tokenizer(case: Case, tensors: Tensors, options: Options) -> Outputs:
    from cosmos_nemo.tools.checks import ar_tokenizer

    return ar_tokenizer.check(case, tensors, dtype=options.dtype, device=options.device)


CHECKS = {
    "ar_sampling": Check(function=_ar_sampling),
    "ar_transformer": Check(function=_ar_transformer, takes_weights=True),
    "predict1_dit": Check(function=_predict1_dit, takes_weights=True),
    "predict1_dit_video": Check(function=_predict1_dit, takes_weights=True),
    "predict1_rope": Check(function=_predict1_rope),
    "predict1_res": Check(function=_predict1_res),
    "predict1_sample": Check(function=_predict1_sample, takes_weights=True),
    "predict1_tokenizer": Check(function=_predict1_tokenizer),
    "predict2_vae": Check(function=_predict2_vae),
    "predict2_video2world": Check(function=_predict2_dit, takes_weights=True),
    "predict2_text2image": Check(function=_predict2_dit, takes_weights=True),
    "predict2_preprocess": Check(function=_predict2_preprocess),
    "predict2_solver": Check(function=_predict2_solver),
    "ar_diffusion_decoder": Check(function=_ar_diffusion_decoder, takes_weights=True),
    "ar_fsq": Check(function=_ar_fsq),
    "ar_tokenizer": Check(function=_ar_tokenizer),
}
