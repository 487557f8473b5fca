"""Sums and means over the processes of a distributed training; of a single process they are the values themselves."""

from jaxtyping import Shaped
from torch import Tensor, distributed


def process_count() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def sum_over_processes(value: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """The sum of a tensor that each process has, all of which must call this; its gradient reaches all of them."""
    if process_count() == 1:
        return value
    if value.requires_grad:
        from torch.distributed.nn.functional import all_reduce

        return all_reduce(value)
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total


def mean_over_processes(value: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """The mean of a tensor that each process has, see `sum_over_processes`."""
    return sum_over_processes(value) / process_count()
