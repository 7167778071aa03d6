"""What one browser tab has open: its conversations, and the one in front."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from tometune.chatting.conversation import Conversation, Turn
from tometune.chatting.engine import Settings


@dataclass
class Session:
    """The conversations of one tab, the newest first; kept by the browser, not here."""

    models: list[str] = field(default_factory=list)
    conversations: list[Conversation] = field(default_factory=list)
    current: Conversation = field(default_factory=lambda: Conversation([]))

    @classmethod
    def read(cls, kept: str, models: Sequence[str], system: str) -> "Session":
        """Return the conversations that a browser has kept, and a new one in front; broken ones are left out."""
        try:
            texts = [str(text) for text in json.loads(kept or "[]")]
        except (ValueError, TypeError, RecursionError):
            texts = []
        read = (Conversation.from_json(text, models) for text in texts)
        return cls(list(models), [each for each in read if each], Conversation(list(models), system))

    def titles(self) -> list[tuple[str, str]]:
        """Return (title, id) of each conversation."""
        return [(each.title, each.id) for each in self.conversations]

    def begin(self, system: str) -> None:
        """Put a new conversation in front; it is listed once something was asked."""
        self.current = Conversation(self.models, system)

    def open(self, identity: str | None) -> None:
        """Put a listed conversation in front."""
        self.current = next((each for each in self.conversations if each.id == identity), self.current)

    def delete(self) -> str:
        """Remove the conversation in front and return its id."""
        gone = self.current
        self.conversations = [each for each in self.conversations if each is not gone]
        self.begin(gone.system)
        return gone.id

    def ask(self, question: str, settings: Settings) -> Turn:
        """Add a question to the conversation in front."""
        if self.current not in self.conversations:
            self.conversations.insert(0, self.current)
        return self.current.ask(question, settings.seed)

    def again(self, place: int, settings: Settings) -> Turn:
        """Ask a question again, by the next seed; what came after it goes."""
        turn = self.current.turns[place]
        del self.current.turns[place:]
        return self.current.ask(turn.question, turn.seed + 1 if settings.temperature else settings.seed)

    def edit(self, place: int, question: str, settings: Settings) -> Turn:
        """Ask another question in its place; what came after it goes."""
        del self.current.turns[place:]
        return self.current.ask(question, settings.seed)
