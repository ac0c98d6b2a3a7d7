"""How the ranks that take part share one video: guidance branches x context parallel x tensor parallel."""

import math
from dataclasses import dataclass

from cosmos_nemo.request import RequestError, Setup


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Group sizes; their product is the number of ranks that take part.

    `cfg` 2 puts the two guidance branches on two halves of the ranks, `cp` splits the tokens of one branch,
    `tp` splits the matrices of every layer. `replicas` of all this work on different samples in training, and
    on different videos of a batch otherwise.
    """

    cfg: int = 1
    cp: int = 1
    tp: int = 1
    replicas: int = 1

    @property
    def num_ranks(self) -> int:
        return self.replicas * self.cfg * self.cp * self.tp

    @property
    def ranks_per_replica(self) -> int:
        return self.num_ranks // self.replicas

    def __str__(self) -> str:
        one = f"guidance branches {self.cfg} x context parallel {self.cp} x tensor parallel {self.tp}"
        return one if self.replicas == 1 else f"{self.replicas} replicas x {one}"


def shares_of(length: int, num_ranks: int, *, least: int) -> list[int]:
    """How much of `length` each rank has: as equal as can be, the first ones more, at least `least`.

    Where there is too little for all, the last ranks have nothing.
    """
    ranks = max(1, min(num_ranks, length // least))
    share, rest = divmod(length, ranks)
    return [share + (rank < rest) for rank in range(ranks)] + [0] * (num_ranks - ranks)


def num_ranks_taking_part(setup: Setup, num_started: int, *, pretend: bool = False) -> int:
    """How many of the started ranks make the video; RequestError for more than there are.

    `pretend` (a dry run): as many as the flags ask for, whether or not they run.
    """
    if setup.num_devices is not None and setup.num_devices < 1:
        raise RequestError(f"--num_devices {setup.num_devices} must be at least 1.")
    if pretend:
        sizes = (setup.cp_size or 1) * (setup.tensor_parallel or 1) * (2 if setup.cfg_parallel == "on" else 1)
        sizes *= setup.replicas
        return setup.num_devices or max(sizes, num_started)
    if (setup.num_devices or 1) > num_started:
        raise RequestError(
            f"--num_devices {setup.num_devices} is more than the {num_started} rank(s) started. Start them "
            f"with torchrun --nproc_per_node={setup.num_devices}, or pass --num_devices {num_started}."
        )
    return setup.num_devices or num_started


def make_plan(
    *,
    num_devices: int,
    num_heads: int,
    num_branches: int,
    cp_size: int | None = None,
    tensor_parallel: int | None = 1,
    cfg_parallel: str = "auto",
    replicas: int = 1,
) -> Plan:
    """The plan for `num_devices` ranks; RequestError when the sizes asked for do not multiply to them.

    num_branches: network calls a step needs, 2 with guidance, 1 without. Each of the `replicas` gets an equal
    share of the ranks, which the other sizes divide. `cfg_parallel` "auto" splits the branches whenever the
    ranks that `cp_size` and `tensor_parallel` leave are even: halves exchange one latent a step, where
    context parallel exchanges every layer's keys and values. tensor_parallel None: of the ranks of a video
    that cp_size leaves as many as divide the heads.
    """
    if tensor_parallel is None:
        tensor_parallel = math.gcd(num_devices // max(replicas * (cp_size or 1), 1) or 1, num_heads)
    if tensor_parallel < 1 or num_heads % tensor_parallel:
        divisors = ", ".join(str(n) for n in range(1, num_heads + 1) if num_heads % n == 0)
        raise RequestError(
            f"--tensor_parallel {tensor_parallel} does not divide the {num_heads} heads of the model. "
            f"Pass one of {divisors}."
        )
    if cp_size is not None and cp_size < 1:
        raise RequestError(f"--cp_size {cp_size} must be at least 1.")
    if cfg_parallel == "on" and num_branches == 1:
        raise RequestError(
            "--cfg_parallel on needs two guidance branches, but with --guidance 0 or -1 there is one. "
            "Pass --cfg_parallel auto."
        )
    if num_devices % replicas:
        raise RequestError(
            f"--replicas {replicas} does not divide the {num_devices} rank(s) that take part. "
            f"Start a multiple of {replicas}, or pass another number."
        )
    share = num_devices // replicas
    cfg = _guidance_halves(share, num_branches, cp_size, tensor_parallel, cfg_parallel)
    cp = cp_size if cp_size is not None else share // (cfg * tensor_parallel)
    plan = Plan(cfg=cfg, cp=cp, tp=tensor_parallel, replicas=replicas)
    if plan.num_ranks != num_devices or cp < 1:
        raise RequestError(
            f"--cp_size {cp_size if cp_size is not None else 'auto'} --tensor_parallel {tensor_parallel} "
            f"--cfg_parallel {cfg_parallel} make {plan} = {plan.num_ranks} ranks, but {num_devices} "
            f"take part (--num_devices). Choose sizes whose product is {num_devices}, or leave --cp_size out."
        )
    return plan


def _guidance_halves(
    num_devices: int, num_branches: int, cp_size: int | None, tensor_parallel: int, cfg_parallel: str
) -> int:
    if cfg_parallel == "on":
        return 2
    if cfg_parallel == "off" or num_branches == 1:
        return 1
    left = num_devices // (tensor_parallel * (cp_size or 1))
    return 2 if (left == 2 if cp_size is not None else left % 2 == 0 and left > 0) else 1
