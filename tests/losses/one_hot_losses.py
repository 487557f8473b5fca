"""The losses as their formulas read: one-hot, the whole batch at once, autograd."""

import torch
from torch.nn import functional


def one_hot(target, classes):
    return functional.one_hot(target.long(), classes).movedim(-1, 1)


def dice(logits, target, weights=None, include_background=False, batch=False, smooth=1e-5, absent_fraction=1e-3):
    """Of class indices, or of memberships of regions."""
    classes = logits.shape[1]
    if target.ndim == 5:
        p, y, include_background = logits.sigmoid(), target.to(logits), True
    else:
        p, y = logits.softmax(1), one_hot(target, classes).to(logits)
    w = torch.ones(classes, dtype=logits.dtype) if weights is None else torch.tensor(weights, dtype=logits.dtype)
    first = 0 if include_background else 1
    w = w[first:] / w[first:].sum()
    groups = [range(len(p))] if batch else [[b] for b in range(len(p))]
    losses = []
    for samples in groups:
        volume = p[list(samples), 0].numel()
        mean, share, charge = 0.0, 0.0, 0.0
        for c in range(first, classes):
            p_c, y_c, w_c = p[list(samples), c], y[list(samples), c], w[c - first]
            if y_c.any():
                mean = mean + w_c * (1 - (2 * (p_c * y_c).sum() + smooth) / (p_c.sum() + y_c.sum() + smooth))
                share = share + w_c
            else:
                charge = charge + w_c * p_c.sum() / (p_c.sum() + absent_fraction * volume)
        losses.append((mean / share if share else mean) + charge)
    return sum(losses) / len(losses)


def focal(logits, target, gamma=2.0, alpha=0.25, weights=None):
    classes = logits.shape[1]
    log_p, y = logits.log_softmax(1), one_hot(target, classes).to(logits)
    w = torch.ones(classes, dtype=logits.dtype) if weights is None else torch.tensor(weights, dtype=logits.dtype)
    w = w.view(1, -1, 1, 1, 1) * y
    return -alpha * (w * (1 - log_p.exp()) ** gamma * log_p).sum() / w.sum()


def region_focal(logits, target, gamma=2.0, alpha=0.25, weights=None):
    y = target.to(logits)
    right = logits * (2 * y - 1)  # the logit of what is right
    w = torch.ones(logits.shape[1], dtype=logits.dtype) if weights is None else torch.tensor(weights).to(logits)
    w = w.view(1, -1, 1, 1, 1).expand_as(y)
    return -alpha * (w * right.neg().sigmoid() ** gamma * functional.logsigmoid(right)).sum() / w.sum()
