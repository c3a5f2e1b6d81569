"""What `rankdistillm.kernels` computes, by torch's own operations, in any precision."""

import math

import torch
from torch.nn.functional import gelu


class Attention:
    @staticmethod
    def forward(query, key, value, bounds, longest, scaling):
        sizes = bounds.diff().tolist()
        own_sizes = sizes if len(query) == len(key) else [1] * len(sizes)
        parts = zip(query.split(own_sizes), key.split(sizes), value.split(sizes), strict=True)
        contexts, sums = zip(*(_attention(*part, scaling) for part in parts), strict=True)
        return torch.cat(contexts), torch.cat(sums, -1)

    @staticmethod
    def backward(
        of_context, query, key, value, bounds, longest, scaling, context, log_sums, gradients
    ):
        inputs = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
        with torch.enable_grad():
            again, _ = Attention.forward(*inputs, bounds, longest, scaling)
        found = torch.autograd.grad(again, inputs, of_context.view(again.shape))
        for gradient, own in zip(gradients, found, strict=True):
            gradient.copy_(own)


def _attention(query, key, value, scaling):
    query, key, value = (states.transpose(0, 1) for states in (query, key, value))
    logits = query @ key.mT * scaling
    sums = logits.to(torch.promote_types(logits.dtype, torch.float32)).logsumexp(-1)
    return (logits.softmax(-1) @ value).transpose(0, 1), sums / math.log(2)


class Gelu:
    @staticmethod
    def forward(inputs, bias):
        return gelu(inputs + bias).to(inputs.dtype)

    @staticmethod
    def backward(of_outputs, inputs, bias):
        of_sum = torch.ops.aten.gelu_backward(of_outputs.to(bias.dtype), inputs + bias)
        return of_sum.to(inputs.dtype), of_sum.sum(0)


class Norm:
    @staticmethod
    def forward(added, residual, added_bias, weight, bias, bits, threshold, scale, eps, *, is_kept):
        total = residual + dropped(added.to(residual.dtype) + added_bias, bits, threshold, scale)
        whole, mean, rstd = torch.native_layer_norm(total, weight.shape, weight, bias, eps)
        half = whole.to(added.dtype)
        if not is_kept:
            return whole, half, half[:0], rstd[:0]
        return whole, half, ((total - mean) * rstd).to(added.dtype), rstd

    @staticmethod
    def backward(of_whole, of_half, normed, rstd, weight, bits, threshold, scale):
        gradient, normed = of_whole + of_half, normed.to(of_whole.dtype)
        inner = gradient * weight
        shift = inner.mean(-1, keepdim=True) + normed * (inner * normed).mean(-1, keepdim=True)
        of_residual = (inner - shift) * rstd
        of_added = dropped(of_residual, bits, threshold, scale)
        sums = (tensor.sum(0) for tensor in (of_added, gradient * normed, gradient))
        return of_added.to(of_half.dtype), of_residual, *sums


def dropped(values, bits, threshold, scale):
    return values if bits is None else torch.where(bits >= threshold, values * scale, 0)
