"""Lay one picture on another and say how well they agree, in batches of pairs.

A warp (n, 4) of sx, tx, sy, ty says which point of one picture lies at (x, y) of the
other: (sx * x + tx, sy * y + ty). Both run from -1 to 1.
"""

import functools

import numpy as np
import torch
from torch.nn import functional as F

SIDES = (32, 64, 128, 256, 512)  # pixels of squashed pictures, from coarse to fine
COARSE = 16  # pixels of those that `resemblance` compares
CROPS = (0, 0.05, 0.1)  # shares of a side that may be cut off, to start from
STEPS = 6  # of the alignment at each of SIDES
WINDOW, BLUR = 8, 16  # pixels: of the parts that must agree; detail is finer than BLUR
SMOOTH = 4  # pixels that colours are averaged over
FLAT = 0.03  # variance of detail that counts as none, as a share of the strongest
NOISE = 0.5  # the same in levels of 255, squared
# warps (v, 4) that cut a picture by CROPS, at nine places
STARTS = torch.tensor(
    [
        (1 - share, x, 1 - share, y)
        for share in CROPS
        for y in sorted({-share, 0, share})
        for x in sorted({-share, 0, share})
    ]
)
QUANTILES = torch.linspace(0, 1, 65)
# brightness, and two differences of colours
OPPONENTS = torch.tensor([[1, 1, 1], [1, -1, 0], [-0.5, -0.5, 1]])
OPPONENTS = OPPONENTS / torch.tensor([[3.0], [1.0], [1.0]])


def invert(warps):
    """Return the warps from the other picture to the first."""
    scales, shifts = warps[:, ::2], warps[:, 1::2]
    return torch.stack([1 / scales, -shifts / scales], 2).flatten(1)


def lay(pictures, warps):
    """Return pictures (n, c, S, S) as warped, and where (n, S, S) they are known."""
    zero = torch.zeros(len(warps))
    sx, tx, sy, ty = warps.unbind(1)
    matrices = torch.stack([sx, zero, tx, zero, sy, ty], 1).view(-1, 2, 3)
    grid = F.affine_grid(matrices, pictures.shape, align_corners=False)
    laid = F.grid_sample(pictures, grid, padding_mode='border', align_corners=False)
    return laid, (grid.abs() <= 1).all(-1)


def unit(pictures):
    """Return the pixels (..., S * S) of pictures with mean 0 and length 1."""
    values = pictures.flatten(-2)
    return F.normalize(values - values.mean(-1, keepdim=True), dim=-1)


@functools.cache
def crop_matrix():
    """Return weights (side * side, v * COARSE * COARSE) that crop and reduce pixels."""
    side = SIDES[0]
    basis = torch.eye(side**2).view(1, -1, side, side).expand(len(STARTS), -1, -1, -1)
    laid, _ = lay(basis, STARTS)
    reduced = F.avg_pool2d(laid, side // COARSE)  # (v, side * side, COARSE, COARSE)
    return reduced.transpose(0, 1).flatten(1)


def cut_crops(pictures):
    """Return crops (n, v, COARSE * COARSE) of grey pictures (n, 32, 32), as units."""
    crops = pictures.flatten(1) @ crop_matrix()
    return unit(crops.unflatten(1, (len(STARTS), COARSE, COARSE)))


def resemblance(ones, others):
    """Compare `cut_crops` of pictures, as they are and mirrored.

    Returns the largest correlations (n,), the warps (n, 4) that reach them, of the
    picture or, if it is mirrored (n,), of its mirror image.
    """
    scores = []
    mirror = ones.unflatten(2, (COARSE, COARSE)).flip(-1).flatten(2)
    for crops in (ones, mirror):
        scores += [(crops * others[:, :1]).sum(-1), (crops[:, :1] * others).sum(-1)]
    best, place = torch.cat(scores, 1).max(1)
    inverse = invert(STARTS)
    starts = [STARTS, inverse, STARTS * torch.tensor([1, -1, 1, 1]), inverse]
    return best, torch.cat(starts)[place], place >= 2 * len(STARTS)


def compare(ones, others, warps, finest, least):
    """Compare pictures (n, 3, S, S), floats, after laying them on each other.

    Returns their agreement (n,), at most 1, and the largest difference (n,), of 255,
    between mean colours of a window.
    warps: roughly those that lay `ones` on `others`; finest: one of SIDES, at most S.
    If pictures of fewer pixels agree by less than `least`, that is returned.
    """
    # enlarge the whole picture rather than reduce the crop, whose detail would alias
    swap = warps[:, 0] > 1
    warps = torch.where(swap[:, None], invert(warps), warps)
    swap = swap[:, None, None, None]
    ones, others = torch.where(swap, others, ones), torch.where(swap, ones, others)
    agreements, shifts = torch.ones(2, len(ones)).unbind()
    active = torch.arange(len(ones))
    for side in SIDES[: SIDES.index(finest) + 1]:
        if not len(active):
            break
        one, other = (
            F.avg_pool2d(pictures[active], pictures.shape[-1] // side)
            for pictures in (ones, others)
        )
        warps = align(one.mean(1), other.mean(1), warps)
        if side > SIDES[0] or side == finest:
            laid, known = lay(one, warps)
            agreements[active] = agreement(laid, known, other)
            inside = by_window(known.float()) > 0.999
            differences = by_window(laid - other).abs().amax(1) * inside
            shifts[active] = differences.amax((1, 2))
            going = agreements[active] >= least
            active, warps = active[going], warps[going]
    return agreements, shifts


def align(ones, others, warps):
    """Improve the warps of grey pictures (n, S, S) by the method of Lucas and Kanade.

    Each step solves for the change of the warp that brings the picture, whose values
    it takes to be linear, closest to the other. Brightness and contrast do not matter.
    """
    side = ones.shape[-1]
    place = (torch.arange(side) + 0.5) / side * 2 - 1
    for _ in range(STEPS):
        laid, known = lay(ones[:, None], warps)
        laid, target = standardise(laid[:, 0], known), standardise(others, known)
        down, right = torch.gradient(laid, spacing=2 / side, dim=(1, 2))
        slopes = torch.stack([right * place, right, down * place[:, None], down], 1)
        slopes = (slopes * known[:, None]).flatten(2)
        wanted = slopes @ ((target - laid) * known).flatten(1)[:, :, None]
        system = slopes @ slopes.mT
        ridge = 1e-3 * system.diagonal(dim1=1, dim2=2).mean(1) + 1e-6
        system += ridge[:, None, None] * torch.eye(4)
        change = torch.linalg.solve(system, wanted)[:, :, 0].clamp(-0.1, 0.1)
        scales = warps[:, ::2].repeat_interleave(2, 1)
        warps = warps + scales * change
        limits = torch.tensor([0.2, 0.25, 0.2, 0.25])
        centre = torch.tensor([1.0, 0, 1, 0])
        warps = centre + (warps - centre).clamp(-limits, limits)
    return warps


def standardise(pictures, known):
    """Give pictures (n, S, S) mean 0 and variance 1 where they are known."""
    count = known.sum((1, 2), keepdim=True).clamp_min(1)
    pictures = pictures - (pictures * known).sum((1, 2), keepdim=True) / count
    variance = (pictures.square() * known).sum((1, 2), keepdim=True) / count
    return pictures / variance.sqrt().clamp_min(1e-3)


def agreement(ones, known, others):
    """Return the agreement (n,) of pictures that lie on each other.

    It is that of the window of WINDOW x WINDOW pixels that agrees least. One may be
    brighter than the other, or clipped.
    """
    return torch.maximum(
        least_agreement(give_tones(ones, others, known), others, known),
        least_agreement(ones, give_tones(others, ones, known), known),
    )


def give_tones(pictures, models, known):
    """Give pictures (n, 3, S, S) the distribution of brightness of their models.

    One curve does it for all colours, so that they stay different.
    """
    toned = torch.empty_like(pictures)
    for number, where in enumerate(known):
        curve = []
        for picture in (pictures[number], models[number]):
            values = picture.mean(0)[where].sort().values
            values = values[(QUANTILES * (len(values) - 1)).long()]
            curve.append(np.concatenate([[0], values, [255]]))
        own, places = np.unique(curve[0], return_index=True)
        values = np.interp(pictures[number].numpy(), own, curve[1][places])
        toned[number] = torch.from_numpy(values)
    return toned


def least_agreement(ones, others, known):
    """Return 1 - (mean square difference of details) / (their mean square), the least.

    Detail is what remains of a picture without its blurred copy. FLAT and NOISE are
    added to both, so that windows without detail agree.
    """
    one, other = details(ones), details(others)
    difference = by_window((one - other).square().sum(1))
    energy = by_window((one.square() + other.square()).sum(1))
    inside = by_window(known.float()) > 0.999
    energy = energy * inside
    strongest = energy.square().sum((1, 2)) / energy.sum((1, 2)).clamp_min(1e-6)
    least = (FLAT * strongest + 2 * NOISE)[:, None, None]
    agreements = 1 - difference / (energy + least)
    return torch.where(inside, agreements, 1).flatten(1).min(1).values


def details(pictures):
    """Return brightness and colours (n, 3, S, S), less their blurred copies.

    Colours are smoothed, because JPEG keeps them at half the size.
    """
    pictures = torch.einsum('oc,nchw->nohw', OPPONENTS, pictures)
    sharp = torch.cat([pictures[:, :1], blur(pictures[:, 1:], SMOOTH)], 1)
    return sharp - blur(pictures, BLUR)


def blur(pictures, size):
    """Reduce pictures (n, c, S, S) by `size` and enlarge them again."""
    reduced = F.avg_pool2d(pictures, size)
    return F.interpolate(reduced, pictures.shape[-2:], mode='bilinear')


def by_window(values):
    """Return means (..., h, w) of values (..., S, S) in half overlapping windows."""
    return F.avg_pool2d(values, WINDOW, WINDOW // 2)
