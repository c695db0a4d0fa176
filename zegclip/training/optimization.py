"""Parameter groups of the optimizer, and the official learning rate schedule."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from zegclip.errors import UsageError
from zegclip.training.training_arguments import ZegClipTrainingArguments


def group_parameters(
    model: torch.nn.Module, args: ZegClipTrainingArguments, decayed: set[str]
) -> list[dict[str, Any]]:
    """
    Group what is trained by learning rate and weight decay.

    Args:
        model: Parameters of a `decode_head` have a learning rate of their own.
        args: Rates and decay.
        decayed: Names of the parameters with weight decay if norms and biases have none.
    """
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups["decode_head" in name, args.decay_norms_and_biases or name in decayed].append(parameter)
    return [
        {
            "params": parameters,
            "lr": args.learning_rate * (args.decode_head_lr_multiplier if in_head else 1.0),
            "weight_decay": args.weight_decay if decay else 0.0,
        }
        for (in_head, decay), parameters in groups.items()
    ]


def poly_schedule(
    optimizer: torch.optim.Optimizer, *, num_steps: int, warmup_steps: int, power: float = 0.9, lr_end: float = 1e-6
) -> LambdaLR:
    """
    Build the official schedule: polynomial decay to an absolute floor, times a linear warm-up.

    At step i of T the rate is `((lr - floor) (1 - i/T)^power + floor)`, and for `i < warmup` this times
    `1 - (1 - i/warmup)(1 - 1e-6)`. (transformers' own starts to decay only after the warm-up.)

    Args:
        optimizer: Its groups' `lr` are the peaks.
        num_steps: T.
        warmup_steps: Steps of warm-up.
        power: Exponent of the decay.
        lr_end: The floor, an absolute rate for every group.

    Raises:
        UsageError: If the rate would rise instead of decaying; one sentence.
    """
    if power < 0:
        raise UsageError(f"The power of the polynomial schedule must not be negative, as {power} is.")
    for group in optimizer.param_groups:
        if not 0 <= lr_end <= group["lr"]:
            raise UsageError(
                f"lr_end={lr_end} of the polynomial schedule must lie between 0 and the learning rate, which is "
                f"{group['lr']}."
            )

    def of_group(peak: float) -> Callable[[int], float]:
        def multiplier(step: int) -> float:
            decay = (1 - min(step / num_steps, 1.0)) ** power
            rate = (peak - lr_end) * decay + lr_end
            if step < warmup_steps:
                rate *= 1 - (1 - step / warmup_steps) * (1 - 1e-6)
            return rate / peak

        return multiplier

    return LambdaLR(optimizer, [of_group(group["lr"]) for group in optimizer.param_groups])
