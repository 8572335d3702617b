"""The embedded demo task: a seeded grammar of one-line stories and claims about them, with its own vocabulary.

The claim restates two facts of the story in other words, or with one word changed. The label says whether the story
supports the claim. A model must compare the two sentences, since neither reveals the label by itself. No story of the
held-out splits occurs in training.

  the baker hid a red kite in the barn .  |  the kite was blue .  -> unsupported
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from svt_jax.data.glue import Examples, Split, Task

TASK = Task("demo", "", ("story", "claim"), "label", ("unsupported", "supported"), ("accuracy", "f1"))
SIZES = {"train": 6000, "validation": 1000, "test": 1000}
_GRAMMAR_SEED = 20221

_PEOPLE = ("baker", "nurse", "sailor", "farmer", "poet", "judge", "miner", "tailor")
_ACTIONS = ("found", "sold", "hid", "painted", "broke", "bought")
_COLOURS = ("red", "blue", "green", "white", "black", "yellow")
_THINGS = ("kite", "drum", "lamp", "chair", "clock", "ladder", "basket", "mirror")
_PLACES = ("barn", "port", "garden", "tower", "market", "cellar")
_SLOTS = (_PEOPLE, _ACTIONS, _COLOURS, _THINGS, _PLACES)

_EVENT = "the {0} {1} a {2} {3} in the {4} ."
# A claim, and the slot that a false claim changes.
_CLAIMS = (
    ("the {3} was {2} .", 2),
    ("it was the {0} who {1} the {3} .", 0),
    ("what the {0} did with the {3} : {1} it .", 1),
    ("look for the {3} in the {4} .", 4),
)


def vocabulary() -> list[str]:
    """Every token of the grammar, special tokens first; the position is the token's number."""
    words = {w for text in (_EVENT, *(c for c, _ in _CLAIMS)) for w in text.split() if not w.startswith("{")}
    words |= {w for slot in _SLOTS for w in slot}
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words)]


def load_demo(split: Split) -> Examples:
    """The examples of one split; they are always the same.

    Example:
      >>> train, held_out = load_demo("train"), load_demo("validation")
      >>> len(train), len(held_out), len(set(train.first) & set(held_out.first))
      (6000, 1000, 0)
    """
    if split not in SIZES:
        raise ValueError(f"the demo task has the splits {', '.join(SIZES)}, not {split!r}. Choose one of these.")
    stories, claims, labels = zip(*_rows(**SIZES)[split], strict=True)
    return Examples(list(stories), list(claims), np.asarray(labels, np.int32))


@functools.cache
def _rows(**sizes: int) -> dict[str, list[tuple[str, str, int]]]:
    """Story, claim and label of every row, by split; drawn together, so that the splits' stories differ."""
    rng = np.random.default_rng(_GRAMMAR_SEED)

    def draw(words: Sequence[str]) -> str:
        return words[int(rng.integers(len(words)))]

    seen: set[str] = set()
    splits: dict[str, list[tuple[str, str, int]]] = {}
    for name, size in sizes.items():
        rows = splits[name] = []
        while len(rows) < size:
            fact = [draw(slot) for slot in _SLOTS]
            story = _EVENT.format(*fact)
            if story in seen:
                continue
            seen.add(story)
            supported = len(rows) % 2
            words, tested = _CLAIMS[rng.integers(len(_CLAIMS))]
            if not supported:
                fact[tested] = draw([w for w in _SLOTS[tested] if w != fact[tested]])
            rows.append((story, words.format(*fact), supported))
    return splits
