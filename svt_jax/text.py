"""Foreign text in our messages: files name tensors, labels and fields, and a name may be made to do harm."""

from __future__ import annotations

from collections.abc import Sequence

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
