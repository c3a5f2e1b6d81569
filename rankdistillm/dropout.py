"""Dropout that is drawn quickly: torch's own takes a quarter of a training step on a CPU.

Four elements share one 64-bit number of torch's global generator, where torch draws one for each;
both draw on one thread. A rate is kept to within 2⁻¹⁷.
"""

import torch
from torch import Tensor, nn

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Dropout(nn.Dropout):
    """torch's ``nn.Dropout`` (Srivastava et al., JMLR 2014), on a CPU by `scaled_mask`."""

    def forward(self, states: Tensor) -> Tensor:
        if self.training and 0 < self.p < 1 and states.device.type == "cpu":
            return states * scaled_mask(states, self.p)
        return super().forward(states)


def use_fast_dropout(network: nn.Module) -> None:
    """Put `Dropout` in the place of each ``nn.Dropout`` of the network."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p).train(child.training))


def scaled_mask(like: Tensor, rate: float) -> Tensor:
    """Of that shape, type and device: 0 with probability ``rate`` (in (0, 1)), else 1 / (1 - rate).

    A product with it is dropout.
    """
    bits = kept_bits(like, rate)
    scale = torch.tensor(1 / (1 - rate), dtype=like.dtype).view(bits.dtype).item()
    return bits.bitwise_and_(int(scale)).view(like.dtype)


def kept_bits(like: Tensor, rate: float) -> Tensor:
    """Integers as wide as the elements: 0 with probability ``rate``, else -1, which is all bits.

    `keep` takes them: on a CPU that is quicker than a product, above all in half precision.
    """
    kept = random_bits(like).ge_(threshold_of(rate)).neg_()
    return kept.to(INTEGERS[like.dtype.itemsize])


def random_bits(like: Tensor) -> Tensor:
    """int16 of that shape, each number equally likely: below `threshold_of` what is dropped."""
    quarter = -(-like.numel() // 4)
    drawn = torch.empty(quarter, dtype=torch.int64, device=like.device)
    # All 64 bits are random only in this range.
    drawn.random_(torch.iinfo(torch.int64).min, None)
    return drawn.view(torch.int16)[: like.numel()].view(like.shape)


def threshold_of(rate: float) -> int:
    """A number of 16 bits is below it with probability ``rate``, to within 2⁻¹⁷."""
    lowest, highest = torch.iinfo(torch.int16).min, torch.iinfo(torch.int16).max
    return min(highest, lowest + round(rate * 2**16))


def keep(values: Tensor, bits: Tensor) -> Tensor:
    """The values where the bits of `kept_bits` are set, else 0."""
    return (values.view(bits.dtype) & bits).view(values.dtype)
