"""The fixed conversations that every export is held against: what users write, and what breaks templates."""

Conversation = list[dict[str, str]]


def _user(text: str) -> Conversation:
    """Return a conversation of one question."""
    return [{"role": "user", "content": text}]


CONVERSATIONS: tuple[Conversation, ...] = (
    _user("What is the capital of France?"),
    [
        {"role": "system", "content": "You answer in one sentence."},
        *_user("Why is the sky blue?"),
    ],
    [
        *_user("Name a fruit."),
        {"role": "assistant", "content": "An apple."},
        *_user("And another one, with its colour?"),
    ],
    _user("What does this function return?\n\n```python\ndef f(x, y=2):\n    return x ** y  # power\n```"),
    _user("Übersetze ins Englische: „Der schnelle Fuchs – 3,14 × 2 = 6,28 – springt.“ 漢字 🦊"),
    _user("  Keep   these\tspaces,\n\n\nlines, and <b>tags</b> & {{ braces }} {% raw %}.  "),
    _user("Count: 1 22 333 4444 55555 666666 7777777 88888888 999999999."),
    _user(
        "Summarise in ten words: Return a list of the names of the entries in the given directory, in arbitrary order."
    ),
)
"""Each ends with the user's turn; all but one have no system message, so a template's own stands there."""
