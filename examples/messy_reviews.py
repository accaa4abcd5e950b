"""A spreadsheet's export as it comes: `reviews.csv` to train on, `new_reviews.csv` to try, from SST-2's sentences.

    python examples/messy_reviews.py data/glue/SST-2

Both have a byte order mark, `;` between columns, Windows line ends, quotes, line breaks and `;` inside of cells,
emoji, rows without text or label, a column `mood` in two spellings, and a column `thumb` with 0, 0.0, 1 and 1.0. The
folder has `train.tsv` and `dev.tsv` with a sentence and a label in a row. Needs nothing but Python.
"""

import csv
import random
import sys
from pathlib import Path

HEADER = ("nr", "review", "mood", "thumb")
MOODS = (("negative", "Negative"), ("positive", "Positive"))
THUMBS = (("0", "0.0"), ("1", "1.0"))


def sentences(path: Path, count: int, chance: random.Random) -> list[tuple[str, int]]:
    """So many of the longer sentences and their labels."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    rows = [(line.rpartition("\t")[0].strip(), int(line.rpartition("\t")[2])) for line in lines]
    return chance.sample([row for row in rows if len(row[0].split()) > 5], count)


def messy(text: str, label: int, number: int, chance: random.Random) -> list[str]:
    """A row of the export."""
    if number % 7 == 0:
        text = f'"{text}"'
    elif number % 11 == 0:
        text = text.replace(" , ", "; ").replace(" . ", "\n")
    elif number % 13 == 0:
        text += " 😀" if label else " 😡"
    spelling = chance.random() < 0.02
    mood, thumb = MOODS[label][spelling], THUMBS[label][chance.random() < 0.1]
    if chance.random() < 0.02:
        mood = thumb = ""
    return [str(number), "" if chance.random() < 0.003 else text, mood, thumb]


def main() -> None:
    chance, folder = random.Random(0), Path(sys.argv[1])
    for name, source, count in (("reviews.csv", "train.tsv", 3000), ("new_reviews.csv", "dev.tsv", 400)):
        with open(name, "w", encoding="utf-8-sig", newline="") as file:
            writer = csv.writer(file, delimiter=";", lineterminator="\r\n")
            writer.writerow(HEADER)
            for number, (text, label) in enumerate(sentences(folder / source, count, chance), start=1):
                writer.writerow(messy(text, label, number, chance))


if __name__ == "__main__":
    main()
