"""The processes that share the pictures of one command."""

import time
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, get_cpu_distributed_information

from zegclip.errors import MachineError


class Processes:
    """
    The processes that torchrun or `accelerate launch` started for one command; without a launcher, this one.

    Attributes:
        count: Number of processes.
        rank: Rank of this one.
        local_rank: Rank among those on the same machine.
    """

    def __init__(self) -> None:
        """
        Connect to the other processes.

        Raises:
            OSError: If they cannot be reached.
        """
        self.count = get_cpu_distributed_information().world_size
        self.rank = self.local_rank = 0
        if self.count > 1:
            try:
                # gloo on any device: only text is exchanged, and NCCL refuses two processes on one GPU. The first
                # process to finish waits for the last, however long that takes.
                state = PartialState(cpu=True, backend="gloo", timeout=timedelta(days=30))
            except (RuntimeError, ValueError) as error:  # or the launcher's environment variables are incomplete
                raise MachineError(f"The processes cannot reach each other: {str(error).splitlines()[0]}") from error
            self.rank, self.local_rank = state.process_index, state.local_process_index

    @property
    def is_main(self) -> bool:
        """Whether this process prints for all."""
        return self.rank == 0

    def choose_device(self, device: str | None) -> str | None:
        """
        Return the device of this process: of the given type, by default an accelerator if there is one.

        All processes share a device with a number (`cuda:1`), and the CPU. A single process gets `device` as it is.
        """
        if self.count == 1 or device == "cpu" or ":" in (device or ""):
            return device
        if device is None:
            accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
            if accelerator is None:
                return "cpu"
            device = accelerator.type
        return f"{device}:{self.local_rank % max(torch.accelerator.device_count(), 1)}"

    def gather(self, item: Any) -> list[Any]:
        """
        Wait for all processes and return the item of each, by rank.

        Raises:
            OSError: If another process has ended.
        """
        if self.count == 1:
            return [item]
        try:
            barrier = torch.distributed.barrier(async_op=True)
            while not barrier.is_completed():  # Within `wait`, no signal would be noticed.
                time.sleep(0.05)
            barrier.wait()
            return gather_object([item])
        except RuntimeError as error:
            raise MachineError(
                "Another process has ended early; run the same command again to do what is left."
            ) from error
