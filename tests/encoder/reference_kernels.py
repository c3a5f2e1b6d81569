"""References for `rankdistillm.encoder.kernels`: torch's own operations, in any precision."""

import math

import torch
from torch.nn.functional import gelu


class Attention:
    @staticmethod
    def forward(query, key, value, bounds, longest, scaling):
        sizes = bounds.diff().tolist()
        query_sizes = sizes if len(query) == len(key) else [1] * len(sizes)
        parts = zip(query.split(query_sizes), key.split(sizes), value.split(sizes), strict=True)
        contexts, sums = zip(*(_attention(*part, scaling) for part in parts), strict=True)
        return torch.cat(contexts), torch.cat(sums, -1)

    @staticmethod
    def backward(
        grad_context, query, key, value, bounds, longest, scaling, context, log_sums, gradients
    ):
        inputs = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
        with torch.enable_grad():
            context, _ = Attention.forward(*inputs, bounds, longest, scaling)
        computed = torch.autograd.grad(context, inputs, grad_context.view(context.shape))
        for gradient, value in zip(gradients, computed, strict=True):
            gradient.copy_(value)


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
    def backward(grad_outputs, inputs, bias):
        grad_sum = torch.ops.aten.gelu_backward(grad_outputs.to(bias.dtype), inputs + bias)
        return grad_sum.to(inputs.dtype), grad_sum.sum(0)


class Norm:
    @staticmethod
    def forward(
        added, residual, added_bias, weight, bias, bits, threshold, scale, eps, *, for_backward
    ):
        total = residual + dropout(added.to(residual.dtype) + added_bias, bits, threshold, scale)
        fp32, mean, rstd = torch.native_layer_norm(total, weight.shape, weight, bias, eps)
        low = fp32.to(added.dtype)
        if not for_backward:
            return fp32, low, low[:0], rstd[:0]
        return fp32, low, ((total - mean) * rstd).to(added.dtype), rstd

    @staticmethod
    def backward(grad_fp32, grad_low, normed, rstd, weight, bits, threshold, scale):
        gradient, normed = grad_fp32 + grad_low, normed.to(grad_fp32.dtype)
        inner = gradient * weight
        shift = inner.mean(-1, keepdim=True) + normed * (inner * normed).mean(-1, keepdim=True)
        grad_residual = (inner - shift) * rstd
        grad_added = dropout(grad_residual, bits, threshold, scale)
        sums = (tensor.sum(0) for tensor in (grad_added, gradient * normed, gradient))
        return grad_added.to(grad_low.dtype), grad_residual, *sums


def dropout(values, bits, threshold, scale):
    return values if bits is None else torch.where(bits >= threshold, values * scale, 0)
