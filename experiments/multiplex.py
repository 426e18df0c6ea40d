"""Beyond the paper: several relations at once, and edges with directions.

    python experiments/multiplex.py run --only mf-bpr-ui-beauty
    python experiments/multiplex.py run
    python experiments/multiplex.py table

The two questions of the paper's conclusion. Multiplex: SEvo smooths over a weighted sum
of two normalised graphs, of items that follow each other and movies that share a genre
(SASRec, MovieLens-1M), and of users and their items and items that follow each other
(MF-BPR, Beauty). Directed: the flow of a random walk from each item to those that
follow it, in the place of A + A^T (SASRec, Beauty).
"""

from study import Cell
from study import main as command
from table5 import PRIOR

SHARES = (0.25, 0.5, 0.75)
CELLS = [
    Cell("SASRec, sequences", dataset="ml-1m"),
    *(
        Cell(
            f"SASRec, sequences and {share:g} of genres",
            {
                **PRIOR,
                "graph.kind": "item-item+attributes",
                "graph.share": share,
            },
            dataset="ml-1m",
        )
        for share in SHARES
    ),
    Cell("SASRec, genres", PRIOR, dataset="ml-1m"),
    Cell("MF-BPR, users and items", backbone="mf-bpr-ui"),
    *(
        Cell(
            f"MF-BPR, users and items and {share:g} of sequences",
            {"graph.kind": "user-item+item-item", "graph.share": share},
            "mf-bpr-ui",
        )
        for share in SHARES
    ),
    Cell("MF-BPR, sequences", backbone="mf-bpr-ii"),
    Cell("SASRec, A + A^T"),
    Cell("SASRec, flow of a walk", {"graph.kind": "item-item-directed"}),
]


def main() -> None:
    command(__doc__, "multiplex", CELLS)


if __name__ == "__main__":
    main()
