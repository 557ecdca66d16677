"""The offline optimum: the most energy that any schedule could bring, known everything beforehand.

A linear program with no floors, solved by HiGHS. Time is cut wherever a car comes or goes; in between,
powers are constant. For one pooled substation it is a relaxation that no pinned car can reach.
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_matrix

from benchmarks.sim.traces import Visit


def most_energy_j(visits: Sequence[Visit], limit_w: int) -> float:
    """Joules that these visits can get together under `limit_w` watts."""
    times = sorted({v.arrives_ms for v in visits} | {v.leaves_ms for v in visits})
    index = {time: number for number, time in enumerate(times)}
    seconds = np.diff(times) / 1000
    # One variable per visit and interval of its stay: (visit, interval).
    pairs = [(v, k) for v, visit in enumerate(visits) for k in range(index[visit.arrives_ms], index[visit.leaves_ms])]
    most = [min(visits[v].max_w, limit_w) * seconds[k] for v, k in pairs]
    rows = [v for v, _ in pairs] + [len(visits) + k for _, k in pairs]
    columns = [*range(len(pairs)), *range(len(pairs))]
    shape = (len(visits) + len(seconds), len(pairs))
    matrix = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=shape).tocsr()
    bounds = np.concatenate([[v.due_j for v in visits], limit_w * seconds])
    solved = linprog(-np.ones(len(pairs)), A_ub=matrix, b_ub=bounds, bounds=[(0, one) for one in most], method="highs")
    return float(-solved.fun)


def percent(visits: Sequence[Visit], limit_w: int) -> float:
    """Of what the visits ask for."""
    return 100 * most_energy_j(visits, limit_w) / sum(v.due_j for v in visits)
