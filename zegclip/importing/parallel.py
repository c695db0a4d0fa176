"""The same work on many files, in several processes, with a progress bar."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm


class _Calls(torch.utils.data.Dataset):
    def __init__(self, function: Callable[[Any], Any], arguments: Sequence[Any]) -> None:
        self.function = function
        self.arguments = arguments

    def __len__(self) -> int:
        return len(self.arguments)

    def __getitem__(self, index: int) -> Any:
        return self.function(self.arguments[index])


def call_each(
    function: Callable[[Any], Any], arguments: Sequence[Any], num_workers: int, description: str
) -> Iterator[Any]:
    """
    Yield what a function returns for each argument, in their order.

    Args:
        function: Of a module, so that processes can be given its name.
        arguments: One for each call.
        num_workers: Number of processes; 0: this one.
        description: Text of the progress bar.

    Raises:
        RuntimeError: As a data loader does if a process dies; `zegclip.errors` turns it into a sentence.
    """
    loader = DataLoader(
        _Calls(function, arguments),
        batch_size=None,
        num_workers=min(num_workers, len(arguments)),
        collate_fn=_identity,  # The default would convert arrays to tensors.
        generator=torch.Generator(),
    )
    yield from tqdm(loader, desc=description, unit="file", disable=None)


def _identity(item: Any) -> Any:
    return item
