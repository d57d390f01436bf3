"""Decoding of rows that go on from the same prompts: what was read of a prompt is kept once, not once a row.

One matrix product asks a prompt's keys for all of its rows at once. Rows that ask keys of their own have as many small
products as there are rows, which wait for the memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SHARE_FROM = 64
"""Length of a batch's longest prompt from which sharing is faster. Arranging the rows costs more below it."""
DEVICES = {"cpu"}
"""Devices on which sharing was measured to be faster."""
DTYPES = (torch.float32, torch.float64)
"""Number types in which a product of few rows is fast there."""


class SharedPrompts:
    """What a model has read of prompts, and the prompt that each row of a batch goes on from.

    Rows are put into a table with equally many places for each prompt, of which some are empty once rows have left.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], mask_PL: Tensor | None, prompt_B: Tensor) -> None:
        """Keys and values [P, heads, L, dim] of every layer, which of the L are no padding, and each row's prompt."""
        self.layers = list(layers)
        self.mask_PL = mask_PL
        self._place(prompt_B)

    def keep(self, rows: Tensor) -> None:
        """Select rows. Once half of the prompts have no row left, those are dropped."""
        prompt_B = self.prompt_B[rows]
        used, of_used_B = prompt_B.unique(return_inverse=True)
        if 2 * len(used) <= len(self.layers[0][0]):
            self.layers = [(keys[used], values[used]) for keys, values in self.layers]
            self.mask_PL = None if self.mask_PL is None else self.mask_PL[used]
            prompt_B = of_used_B
        self._place(prompt_B)

    def _place(self, prompt_B: Tensor) -> None:
        count_P = torch.bincount(prompt_B, minlength=len(self.layers[0][0]))
        order = prompt_B.argsort(stable=True)
        index_B = torch.empty_like(prompt_B)
        before_P = count_P.cumsum(0) - count_P
        index_B[order] = torch.arange(len(prompt_B), device=prompt_B.device) - before_P[prompt_B[order]]
        self.prompt_B = prompt_B
        self.places = int(count_P.max())
        self.place_B = prompt_B * self.places + index_B

    def together(self, states_BHGE: Tensor) -> Tensor:
        """States of rows as [P, H, places · G, E], side by side for each prompt; zeros at empty places."""
        table = states_BHGE.new_zeros(len(self.layers[0][0]) * self.places, *states_BHGE.shape[1:])
        table[self.place_B] = states_BHGE
        places = table.view(-1, self.places, *table.shape[1:])
        return places.transpose(1, 2).flatten(2, 3)

    def apart(self, states_PHXE: Tensor) -> Tensor:
        """The inverse of :meth:`together`: states of rows [B, H, G, E]."""
        prompts, heads, all_queries, size = states_PHXE.shape
        places = states_PHXE.view(prompts, heads, self.places, all_queries // self.places, size)
        return places.transpose(1, 2).flatten(0, 1)[self.place_B]

    def row(self, index: int, layer: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values [heads, at most ``length``, dim] of a row's prompt, without padding."""
        prompt = int(self.prompt_B[index])
        columns = slice(None) if self.mask_PL is None else self.mask_PL[prompt]
        keys, values = (states[prompt][:, columns][:, :length] for states in self.layers[layer])
        return keys, values


def attend_over_prompts(
    query_BHLD: Tensor,
    key_BHKD: Tensor,
    value_BHKD: Tensor,
    prompts: SharedPrompts,
    layer: int,
    *,
    scaling: float | None = None,
    sink_H: Tensor | None = None,
) -> Tensor:
    """Attention [B, 1, heads, dim] of one query per row over its prompt and then the keys that it has of its own."""
    scaled = query_BHLD * (query_BHLD.shape[-1] ** -0.5 if scaling is None else scaling)
    query_BHGD = scaled.reshape(len(scaled), key_BHKD.shape[1], -1, scaled.shape[-1])
    key_PHLD, value_PHLD = prompts.layers[layer]
    read = key_PHLD.shape[2]
    # All rows of a prompt ask it in one product; each asks its own keys alone.
    of_prompt = torch.matmul(prompts.together(query_BHGD), key_PHLD.transpose(-1, -2))
    if prompts.mask_PL is not None:
        of_prompt = of_prompt.masked_fill(~prompts.mask_PL[:, None, None], float("-inf"))
    scores = [prompts.apart(of_prompt), torch.matmul(query_BHGD, key_BHKD.transpose(-1, -2))]
    if sink_H is not None:
        groups = query_BHGD.shape[1:3]
        scores.append(sink_H.view(1, *groups, 1).expand(len(query_BHGD), -1, -1, -1))
    # One softmax over both, as if the keys stood in one row.
    shares_BHGK = torch.cat(scores, -1).softmax(-1)
    from_prompt = prompts.apart(torch.matmul(prompts.together(shares_BHGK[..., :read]), value_PHLD))
    own_BHGK = shares_BHGK[..., read : read + key_BHKD.shape[2]]
    return (from_prompt + torch.matmul(own_BHGK, value_BHKD)).flatten(1, 2)[:, None]
