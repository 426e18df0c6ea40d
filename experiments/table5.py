"""Table 5 of the paper: similarity from interactions, or from the genres of movies.

    python experiments/table5.py run
    python experiments/table5.py run --only sasrec-ml-1m --seeds 0 1 2
    python experiments/table5.py table

SASRec with SEvo-AdamW on MovieLens-1M, over the graph of items that follow each other
and over that of movies which share a genre. beta = 0 is run as L = 0 (Table 4): the
same updates for less work. It corrects the moments and is not the AdamW of Table 3.
"""

from paper import GENRES
from study import Cell
from study import main as command

PRIOR = {"graph.kind": "attributes", "graph.attributes": str(GENRES)}
BASELINE = Cell("β = 0", {"optimizer.num_layers": 0}, dataset="ml-1m", paper=0.1315)
INTERACTIONS = [
    Cell(
        f"interactions, β = {beta}",
        {"optimizer.beta": beta},
        dataset="ml-1m",
        paper=paper,
    )
    for beta, paper in ((0.5, 0.1362), (0.99, 0.1385))
]
GENRE_CELLS = [
    Cell(
        f"genres, β = {beta}",
        {**PRIOR, "optimizer.beta": beta},
        dataset="ml-1m",
        paper=paper,
    )
    for beta, paper in ((0.5, 0.1352), (0.99, 0.1371))
]
CELLS = [BASELINE, *INTERACTIONS, *GENRE_CELLS]


def main() -> None:
    command(__doc__, "table5", CELLS)


if __name__ == "__main__":
    main()
