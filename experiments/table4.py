"""Table 4 of the paper: how many hops the smoothing reaches, L = 0 to 5.

    python experiments/table4.py run
    python experiments/table4.py run --only sasrec-beauty --seeds 0 1 2
    python experiments/table4.py table

SASRec with SEvo-AdamW. L = 0 is no smoothing, but the moments are corrected: it is not
the plain AdamW of Table 3. Numbers of the paper are those that its scan shows; L = 3 is
from Table 3.
"""

from study import Cell
from study import main as command

PAPER = {
    "beauty": {0: 0.0353, 2: 0.0403, 3: 0.0411, 4: 0.0408, 5: 0.0403},
    "ml-1m": {0: 0.1321, 2: 0.1389, 3: 0.1385, 4: 0.1383, 5: 0.1382},
}
CELLS = [
    Cell(
        f"L = {num_layers}",
        {"optimizer.num_layers": num_layers},
        dataset=dataset,
        paper=numbers.get(num_layers),
    )
    for dataset, numbers in PAPER.items()
    for num_layers in range(6)
]


def main() -> None:
    command(__doc__, "table4", CELLS)


if __name__ == "__main__":
    main()
