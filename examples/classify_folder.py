"""Classify the texts of a folder that has one subfolder for each class.

python examples/classify_folder.py reviews     # reviews/good/*.txt, reviews/bad/*.txt
python examples/classify_folder.py             # makes a small folder and uses that
"""

import random
import sys
import tempfile
from pathlib import Path

from rnnfast.tasks import SequenceClassifier, load


def make_folder(folder):
    """Write 100 short reviews, half of them good and half bad."""
    words = {"good": ["fine", "bright", "moving", "funny"], "bad": ["dull", "slow", "empty", "bad"]}
    rng = random.Random(0)
    for label, adjectives in words.items():
        (folder / label).mkdir(parents=True)
        for k in range(50):
            a, b = rng.sample(adjectives, 2)
            thing = rng.choice(["film", "story", "play", "cast"])
            (folder / label / f"{k}.txt").write_text(f"this {thing} is {a} and {b}")


def read_folder(folder):
    """Return the texts and their classes, which are the names of the subfolders."""
    files = sorted(folder.glob("*/*.txt"))
    return [file.read_text() for file in files], [file.parent.name for file in files]


with tempfile.TemporaryDirectory() as temporary:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary, "reviews")
    if not folder.exists():
        make_folder(folder)
    texts, labels = read_folder(folder)

print(f"{len(texts)} texts, classes: {', '.join(sorted(set(labels)))}")

# Every fifth text is held out to see how good the classifier is.
held_out = range(0, len(texts), 5)
training = [i for i in range(len(texts)) if i not in held_out]
model = SequenceClassifier(epochs=5, seed=0)
model.fit([texts[i] for i in training], [labels[i] for i in training])
accuracy = model.score([texts[i] for i in held_out], [labels[i] for i in held_out])
print(f"accuracy on {len(held_out)} texts that were held out: {accuracy:.0%}")

# A saved model is a folder. load() gives the same classifier again.
model.save("review-classifier", overwrite=True)
sentence = "a bright and funny film"
print(f"{sentence!r} is {load('review-classifier').predict([sentence])[0]}")
