"""Several processes that train one model: their numbers, and values that they exchange.

`torchrun` starts the processes and sets the environment variables that `session` reads; without
them there is one process. torch's DistributedDataParallel averages the gradients.

`rank` is this process's number, `world` the number of processes. Rank 0 alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among all; default: one process on the CPU."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def writes(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean of `values` over all processes."""
        if self.world == 1:
            return values
        total = values.detach().clone()
        dist.all_reduce(total)
        return total / self.world

    def any(self, flag: bool) -> bool:
        """Whether `flag` is True on any process."""
        return bool(self.mean(torch.tensor(float(flag), device=self.device)) > 0)

    def gather(self, value: list[Any]) -> list[Any]:
        """The lists of all processes, joined in the order of their ranks."""
        if self.world == 1:
            return value
        lists: list[Any] = [None] * self.world
        dist.all_gather_object(lists, value)
        return [item for items in lists for item in items]

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, on every process."""
        values = [value]
        if self.world > 1:
            dist.broadcast_object_list(values)
        return values[0]


@contextmanager
def session() -> Iterator[Ranks]:
    """Join the other processes, if torchrun started any, each on its GPU if there is one.

    Raises:
        InputError: the machine has fewer GPUs than processes.
    """
    world, rank = (
        int(os.environ.get(key, default)) for key, default in (("WORLD_SIZE", 1), ("RANK", 0))
    )
    device = torch.device("cpu")
    if torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", 0))
        if local >= torch.cuda.device_count():
            raise InputError(
                f"process {local + 1} of this machine has no GPU: there are "
                f"{torch.cuda.device_count()}; start as many processes"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if world == 1:
        yield Ranks(device=device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(rank, world, device)
    finally:
        dist.destroy_process_group()
