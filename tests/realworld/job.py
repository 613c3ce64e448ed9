"""A numerical job whose every result is written down bit by bit, one after the other, for as long as it is asked.

For: ``test_numpy.py``, which runs several of it on the same data, with and without PageONE. Usage: ``job.py KIND MIB``;
a line on stdin is the file to write the results of one more round to, the answer is ``done``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

SEED = 7
COLUMNS = 64


def numpy_results(data: npt.NDArray[np.float64]) -> Iterator[npt.NDArray[np.generic]]:
    """Linear algebra, a transform, sorts and sums; the data are changed in places and changed back."""
    own = np.random.default_rng(SEED + 1)
    gram = data.T @ data
    yield gram
    yield np.linalg.eigvalsh(gram)
    yield np.linalg.qr(data[:4096])[1]
    yield np.fft.rfft(data[:, 0])
    yield np.sort(data[:, 1:9], axis=0)
    yield np.argsort(data[:, 9], kind="stable")
    yield np.cumsum(data, axis=0)[-1]
    rows = own.choice(len(data), len(data) // 50, replace=False)
    before = data[rows].copy()
    data[rows] = -before
    yield data.sum(axis=0)
    yield np.linalg.solve(data.T @ data + np.eye(COLUMNS), data.sum(axis=0))
    data[rows] = before
    yield data


def sklearn_results(data: npt.NDArray[np.float64]) -> Iterator[npt.NDArray[np.generic]]:
    """Clusters, components, a forest and a classifier, each fitted from a seed and asked for its predictions."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    some = data[:8192]
    label = (some[:, 0] + some[:, 1] ** 2 > 1).astype(np.int64)
    clusters = KMeans(8, n_init=1, max_iter=20, random_state=SEED).fit(some)
    yield clusters.cluster_centers_
    yield clusters.predict(data)
    components = PCA(8, random_state=SEED).fit(some)
    yield components.components_
    yield components.transform(data[-8192:])
    forest = RandomForestClassifier(10, n_jobs=1, random_state=SEED).fit(some, label)
    yield forest.predict_proba(data[-8192:])
    yield LogisticRegression(max_iter=50).fit(some, label).coef_
    yield data


RESULTS = {"numpy": numpy_results, "scikit-learn": sklearn_results}


def main() -> None:
    """Serve until stdin closes."""
    kind, mib = sys.argv[1], int(sys.argv[2])
    data = np.random.default_rng(SEED).standard_normal((mib * (1 << 20) // 8 // COLUMNS, COLUMNS))
    print("ready", flush=True)
    for line in sys.stdin:
        with open(line.strip(), "wb") as out:
            for result in RESULTS[kind](data):
                out.write(np.ascontiguousarray(result).tobytes())
        print("done", flush=True)


if __name__ == "__main__":
    main()
