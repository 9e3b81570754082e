"""Non-negative least squares from a Gram matrix. Knows nothing about latents.

`scipy.optimize.nnls` takes the design matrix. Here that would have a row for each dimension of each token and would not
fit into memory, so the analysis sums up the Gram matrix block by block.
"""

import numpy as np
from numpy.typing import NDArray

RIDGE = 1e-10
"""Share of the mean diagonal that is added to the diagonal. So dependent columns have one answer: the shortest."""
BACKUP_AFTER = 3
"""Full exchanges without progress that are allowed before single exchanges, which cannot cycle."""


class NnlsError(ArithmeticError):
    """An iteration that did not end; a bug, or a Gram matrix that is not positive semi-definite."""


def nnls(gram: NDArray[np.float64], target: NDArray[np.float64], tolerance: float = 1e-9) -> NDArray[np.float64]:
    """The minimiser of `s·gram·s - 2 target·s` over `s >= 0`, for positive semi-definite `gram: [n, n]`, `target: [n]`.

    Block principal pivoting (Portugal, Júdice & Vicente 1994): solve for the free variables, exchange all variables
    that break a sign condition, and exchange one at a time if that does not help. It ends at the exact minimiser: free
    variables have zero gradient; the gradients of the others are above minus `tolerance` times the largest |target|.
    Columns are scaled to unit diagonal first; a zero column gets the scalar 0. Deterministic, no start value.

    Raises NnlsError if the iteration does not end.
    """
    diagonal = np.sqrt(np.maximum(np.diag(gram), 0))
    alive = np.flatnonzero(diagonal > 0)
    result = np.zeros(len(target))
    if len(alive) == 0:
        return result
    scale = diagonal[alive]
    matrix = gram[np.ix_(alive, alive)] / np.outer(scale, scale)
    matrix[np.diag_indices_from(matrix)] += RIDGE
    goal = target[alive] / scale
    result[alive] = _pivot(matrix, goal, tolerance * max(float(np.abs(goal).max()), np.finfo(float).tiny)) / scale
    return result


def _pivot(matrix: NDArray[np.float64], goal: NDArray[np.float64], slack: float) -> NDArray[np.float64]:
    n = len(goal)
    free = goal > 0
    fewest, patience = n + 1, BACKUP_AFTER
    for _ in range(100 * n + 100):
        solution = np.zeros(n)
        solution[free] = np.linalg.solve(matrix[np.ix_(free, free)], goal[free])
        gradient = matrix @ solution - goal
        broken = (free & (solution < 0)) | (~free & (gradient < -slack))
        num_broken = int(broken.sum())
        if num_broken == 0:
            return solution
        if num_broken < fewest:
            fewest, patience = num_broken, BACKUP_AFTER
        elif patience > 0:
            patience -= 1
        else:
            broken[: np.flatnonzero(broken)[-1]] = False
        free ^= broken
    raise NnlsError(f"non-negative least squares over {n} columns did not converge in {100 * n + 100} exchanges")
