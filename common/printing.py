"""Text from elsewhere, made safe for a terminal."""


def printable(text: str) -> str:
    """`text` with whatever could steer a terminal, or is no character at all, spelled out."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
