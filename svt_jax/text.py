"""Foreign text in our messages, where a name may be made to do harm; and the name that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_LONGEST = 200


def printable(text: str) -> str:
    """Escapes control characters, which a terminal would obey, and cuts the middle out of a long text.

    Example:
      >>> printable("bias\\x1b[2J")
      'bias\\\\x1b[2J'
    """
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 4 :]}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def listed(items: Sequence[str], *, most: int = 6, between: str = ", ") -> str:
    """Joins the first items, and says how many more there are.

    Example:
      >>> listed(["a", "b", "c", "d"], most=2)
      'a, b and 2 more'
    """
    more = len(items) - most
    shown = between.join(printable(item) for item in (items[:most] if more > 0 else items))
    return f"{shown} and {more} more" if more > 0 else shown


def counted(number: int, what: str) -> str:
    """A number of things.

    Example:
      >>> counted(1, "program"), counted(2, "program")
      ('1 program', '2 programs')
    """
    return f"{number} {what}{'s' * (number != 1)}"


_NEAR = 0.66
"""The smallest likeness of a name that is suggested: one letter of three may differ. "lr" to any key of optim is below 0.4."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The name that was probably meant: of the same word in another section, of a like word, or of these initials.

    Example:
      >>> keys = ["optim.learning_rate", "optim.schedule", "svt.alpha"]
      >>> [nearest(key, keys) for key in ("optim.lr", "learning_rate", "svt.alhpa", "optm.schedule", "optim.colour")]
      ['optim.learning_rate', 'optim.learning_rate', 'svt.alpha', 'optim.schedule', None]
    """
    known = list(known)
    section, _, word = printable(name).rpartition(".")
    here = [other for other in known if other.rpartition(".")[0] == section]

    def likeness(other: str) -> float:
        theirs = other.rpartition(".")[2]
        if word == theirs or (len(word) > 1 and word == "".join(part[:1] for part in theirs.split("_"))):
            return 1.0
        return difflib.SequenceMatcher(None, word, theirs).ratio()

    for candidates in (here, known):
        best = max(candidates, key=likeness, default=None)
        if best is not None and likeness(best) >= _NEAR:
            return best
    return None


def did_you_mean(unknown: Iterable[str], known: Iterable[str], otherwise: str) -> str:
    """The end of an error: the names that were probably meant, or what else to do if none is near.

    Example:
      >>> did_you_mean(["trian"], ["train", "predict"], "Put one of them first.")
      'Did you mean train?'
      >>> did_you_mean(["zzz"], ["train", "predict"], "Put one of them first.")
      'Put one of them first.'
    """
    known = list(known)
    near = [found for name in unknown if (found := nearest(name, known))]
    return f"Did you mean {', '.join(dict.fromkeys(near))}?" if near else otherwise
