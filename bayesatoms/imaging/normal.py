"""Normal equations of all columns and the background of an image at once: sparse, as light does not reach far."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from .ground import Ground
from .profiles import PATCH, SPAN, gradients, overlaps, summed_overlaps

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Truths = NDArray[np.bool_]

OVERLAP = 6.5  # widths: columns farther apart have nothing in common
STRIDE, TETHER = 0.12, 0.2  # spacings: longest step of a position, and longest way from its seed
WIDTH = 0.18, 0.1, 0.32  # spacings: first guess and limits of the width


@dataclass(frozen=True, eq=False)
class State:
    """What is fitted; as one vector: amplitudes, x, y, widths, levels of the background."""

    position: Floats
    amplitude: Floats
    widths: Floats
    level: Floats

    def moved(self, change: Floats, seeds: Floats, spacing: float) -> State:
        """The state after a step, which is cut where it is too long or leads a column too far from its seed."""
        n, k = len(self.position), len(self.widths)
        move = np.column_stack([change[n : 2 * n], change[2 * n : 3 * n]])
        length = np.linalg.norm(move, axis=1, keepdims=True)
        move *= np.minimum(1.0, STRIDE * spacing / np.maximum(length, 1e-12))
        widths = self.widths + np.clip(change[3 * n : 3 * n + k], -0.2 * self.widths, 0.2 * self.widths)
        widths = np.clip(widths, WIDTH[1] * spacing, WIDTH[2] * spacing)
        away = self.position + move - seeds
        far = np.linalg.norm(away, axis=1, keepdims=True)
        position = seeds + away * np.minimum(1.0, TETHER * spacing / np.maximum(far, 1e-12))
        return State(position, self.amplitude + change[:n], widths, self.level + change[3 * n + k :])


def normal_equations(
    residual: Floats, there: Truths, state: State, kinds: Integers, ground: Ground, floor: float
) -> tuple[sparse.csr_array, Floats]:
    """Normal matrix and gradient by amplitudes, x, y, widths and levels.

    Overlaps of whole Gaussians are known in closed form; where the edge of the image or a hole cuts
    one they are summed over the pixels.
    """
    position, widths = state.position, state.widths
    n, m, width = len(position), len(widths), widths[kinds]
    strength = np.maximum(np.abs(state.amplitude), floor)  # positions of vanished columns must not make it singular
    gradient, share, light, corner = gradients(residual, there, position, width, PATCH, *ground.tables)
    pairs = cKDTree(position).query_pairs(OVERLAP * float(widths.max()), output_type="ndarray")
    i, j = np.concatenate([pairs[:, 0], np.arange(n)]), np.concatenate([pairs[:, 1], np.arange(n)])
    blocks = overlaps(position[i] - position[j], width[i], width[j])
    cut = np.minimum(share[i], share[j]) < 0.995
    blocks[cut] = summed_overlaps(there, position, width, i[cut], j[cut], PATCH)
    factor = np.stack([np.ones(n), strength, strength, strength], axis=1)
    blocks = blocks * factor[i][:, :, None] * factor[j][:, None, :]
    gradient *= factor
    other = i != j
    index = np.stack([np.arange(n), n + np.arange(n), 2 * n + np.arange(n), 3 * n + kinds], axis=1)
    rows, columns, values = [], [], []
    for a in range(4):
        for b in range(4):
            rows += [index[i, a], index[j[other], b]]
            columns += [index[j, b], index[i[other], a]]
            values += [blocks[:, a, b], blocks[other, a, b]]
    step = np.arange(SPAN)
    knots = 3 * n + m + (corner[:, 0, None, None] + step[:, None]) * ground.knots[1] + corner[:, 1, None, None] + step
    light = (light * factor[:, None, None, :]).reshape(n, -1, 4)
    knots = knots.reshape(n, -1)
    used = np.abs(light).max(axis=2) > 0
    column = np.broadcast_to(np.arange(n)[:, None], knots.shape)[used]
    for a in range(4):
        rows += [index[column, a], knots[used]]
        columns += [knots[used], index[column, a]]
        values += [light[used, a], light[used, a]]
    mass = ground.mass.tocoo()
    rows.append(3 * n + m + mass.row)
    columns.append(3 * n + m + mass.col)
    values.append(mass.data)
    total = 3 * n + m + ground.n
    matrix = sparse.csr_array((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), (total, total))
    by_width = np.bincount(kinds, gradient[:, 3], m)
    return matrix, np.concatenate([*gradient[:, :3].T, by_width, ground.gradient(residual) - ground.penalty @ state.level])
