"""The learning rate, epoch by epoch or batch by batch."""

import math


def learning_rate(schedule, lr, num_epochs, warmup, epochs):
    """Return the rate after `epochs` epochs, which may be a fraction.

    step: lr, divided by 10 after 50 % and again after 70 % of the epochs. cosine: lr,
    falling to 0 like half a wave (arXiv 1608.03983). warmup: the share of all epochs
    in which the rate first rises from 0.
    """
    if schedule == 'cosine':
        share = epochs / num_epochs
        rise = min(1, share / warmup) if warmup else 1
        rest = max(0, share - warmup) / (1 - warmup)
        wave = (1 + math.cos(math.pi * rest)) / 2
        return lr * rise * wave
    drops = 0
    for part in (0.5, 0.7):
        milestone = max(1, int(num_epochs * part))
        drops += epochs >= milestone
    return lr / 10**drops
