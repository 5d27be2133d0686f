"""Text from elsewhere, made safe for a terminal."""

import hashlib
import re

_PLAIN = re.compile(r"[!-~]+( [!-~]+)*")  # ASCII, with single spaces between words
_MARKED = re.compile(r".*#[0-9a-f]{12}")


def printable(text: str) -> str:
    """`text` with whatever could steer a terminal, or is no character at all, spelled out."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def unmistakable(name: str) -> str:
    """`name` as printable text that no other name has: what may look like another carries its digest.

    Letters of other alphabets that look alike, spaces that do not show and characters that are spelled out
    could pass one study off as another.
    """
    if _PLAIN.fullmatch(name) and not _MARKED.fullmatch(name) and "\\" not in name:
        return name
    return f"{printable(name)} #{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
