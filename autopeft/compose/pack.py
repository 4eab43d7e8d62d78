"""Several adapted models run at once: their rows go through one base, and through each one's own parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from autopeft.compose.adapt import AdaptedModel
from autopeft.compose.base import skeleton
from autopeft.compose.host import asks_base, changed_modules, frozen_of, route_attention
from autopeft.compose.rows import Layout
from autopeft.errors import TrialFailure
from autopeft.methods import METHODS
from autopeft.space.configuration import Configuration

__all__ = ["PackedModel", "packable"]


def packable(configuration: Configuration) -> bool:
    """Whether a configuration can be trained beside others: its methods sit on single modules."""
    return bool(configuration.sites) and all(METHODS[method].packable for method in configuration.methods)


class PackedModel(nn.Module):
    """Adapted models over one carrier, run together. Final.

    Every module that no member has changed runs once, on the rows of all. At the others the rows part: each member's
    own module computes on its rows. The members stay whole models of their own: they can be run, stored and trained
    alone at any time, and be in another pack next.

    Args:
        members: The adapted models, all made on the same carrier.

    Attributes:
        members: The same.
        layout: Which rows are whose; `lay` it before every forward pass.
        model: The transformers model that runs all rows.

    Raises:
        TrialFailure: They cannot be run together.
    """

    def __init__(self, members: Sequence[AdaptedModel]) -> None:
        super().__init__()
        carrier = members[0].carrier
        if any(member.carrier is not carrier for member in members):
            raise TrialFailure("unsupported", "models of different carriers cannot be packed")
        if not all(packable(member.configuration) for member in members):
            raise TrialFailure("unsupported", "a method about the whole model cannot be packed")
        self.members = tuple(members)
        self.layout = Layout()
        self.model = skeleton(carrier).eval()
        self._lengths = [member.positions for member in members]
        changed = [changed_modules(member.model) for member in members]
        for name in dict.fromkeys(name for modules in changed for name in modules):
            _check_place(self.model, name)
            parent, _, attribute = name.rpartition(".")
            plain = self.model.get_submodule(name)
            setattr(
                self.model.get_submodule(parent), attribute, Router(self.layout, plain, [m.get(name) for m in changed])
            )
        route_attention(self.model, self.layout, [member.model for member in members])
        # Own heads and inputs are handled alike for all members: they have the carrier in common.
        self._first = members[0]

    def lay(self, shapes: Sequence[tuple[int, int]]) -> None:
        """Say what the next batch is: `(rows, padded length)` of every member, in the order of the members."""
        self.layout.lay(shapes)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The logits of all members' rows, one below the other.

        Args:
            input_ids: int64 `[rows, length]`, of all members, padded to the longest.
            attention_mask: int64 `[rows, length]`, 1 for tokens.
            token_type_ids: int64 `[rows, length]`; ignored by models that have none.

        Returns:
            `[rows, labels]` float32; for language models `[rows, length, vocabulary]`, or `[positions, vocabulary]`
            where positions are selected before the output layer.
        """
        output = self.model(**self._first.inputs(input_ids, attention_mask, token_type_ids))
        if self._first.carrier.head == "lm":
            return output.logits
        if self._first.head is None:
            return output.logits.float()
        hidden, logits = output.last_hidden_state, []
        for index, member in enumerate(self.members):
            rows, places = self.layout.rows_of(index), self.layout.places_of(index)
            logits.append(member.classify(member.pool(hidden[rows, places], attention_mask[rows, places])))
        return torch.cat(logits)

    def train(self, mode: bool = True) -> PackedModel:
        """Switch the adapter dropout of all members on or off; the base stays in eval mode."""
        self.training = mode
        for member in self.members:
            member.train(mode)
        return self


class Router(nn.Module):
    """Stands where a frozen module was, and leads each member's rows through the member's own module.

    The frozen module runs once for all who ask it with their own rows.

    Args:
        layout: Which rows are whose.
        plain: The frozen module.
        own: For every member its module here; None for a member that has not changed it.
    """

    def __init__(self, layout: Layout, plain: nn.Module, own: Sequence[nn.Module | None]) -> None:
        super().__init__()
        self.plain = plain
        # Not registered: the members' modules are theirs.
        self._own = tuple(own)
        self._layout = layout
        self._sharing = [index for index, module in enumerate(own) if module is None or asks_base(module)]
        self._frozen = [None if module is None else frozen_of(module) for module in own]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The output for all rows."""
        layout = self._layout
        inputs = layout.split(x)
        shared = self._shared_outputs(x, inputs)
        made = []
        for index, module in enumerate(self._own):
            if module is None:
                made.append(shared[index])
            elif index in shared:
                made.append(_with_output(self._frozen[index], inputs[index], shared[index], module))
            else:
                made.append(module(inputs[index]))
        return layout.join(made, x)

    def _shared_outputs(self, x: torch.Tensor, inputs: Sequence[torch.Tensor]) -> dict[int, torch.Tensor]:
        """What the frozen module makes of the rows of those who share it, by member."""
        if len(self._sharing) == len(inputs):
            return dict(enumerate(self._layout.split(self.plain(x), fresh=True)))
        return {index: self.plain(inputs[index]) for index in self._sharing}

    def __getattr__(self, name: str) -> Any:
        # transformers' layers ask their modules for weights and their types.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("plain"), name)


def _with_output(frozen: Any, x: torch.Tensor, y: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """Run a member's module while what the frozen one inside makes of `x` is known to be `y`."""
    table = vars(frozen)
    before: Callable[..., Any] | None = table.get("forward")
    table["forward"] = partial(_known, frozen.forward, x, y)
    try:
        made: torch.Tensor = module(x)
    finally:
        if before is None:
            del table["forward"]
        else:
            table["forward"] = before
    return made


def _known(
    forward: Callable[..., Any], x: torch.Tensor, y: torch.Tensor, asked: torch.Tensor, *args: Any, **kwargs: Any
) -> Any:
    # Whoever asks with anything else, e.g. a scaled input, gets what is made of that.
    return y if asked is x and not args and not kwargs else forward(asked, *args, **kwargs)


def _check_place(model: nn.Module, name: str) -> None:
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    if head is not None and model.get_submodule(name) is head:
        raise TrialFailure("unsupported", f"rows cannot be told apart in the output layer {name}")
