"""What is said to people, in one line of a length that no page is flooded by."""

from __future__ import annotations

from trust_engine.errors import TrustError

from .wording import in_tab_words

LONGEST = 400  # characters of a message
TITLE = 80  # characters of a job's title
_CUT = " ... "


def one_line(said: object, longest: int = LONGEST) -> str:
    """Put a message or an error in one line without control characters, cut in its middle.

    An error of ours is said in the words of the tab.

    The middle, because messages begin with what is wrong and end with what to do.
    """
    told = said.worded(in_tab_words) if isinstance(said, TrustError) else str(said)
    text = " ".join(told.split())
    text = "".join(char if char.isprintable() else "?" for char in text)
    if len(text) <= longest:
        return text
    tail = (longest - len(_CUT)) // 3
    return text[: longest - len(_CUT) - tail] + _CUT + text[-tail:]
