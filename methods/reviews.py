"""Short film reviews made of a few words, positive and negative ones, and a classifier of them: what imdb and a sentiment
classifier are on the hub, where there is none.

    reviews = Reviews(seed, device)
    tokens = reviews.sequences(step, count, length)         int64 [count, length], a word each
    text(tokens[0])                                         "i saw this film with friends . the plot is superb ..."
    classifier = trained_classifier(vocabulary, device)     trained on reviews of its own, in less than a second
    classifier(tokens)                                      fp32 [count], above 0 for positive ones

The first sentence says nothing of what is thought: a prompt cut from it leaves that open.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch
from torch import nn
from torch.nn import functional as F

OPENINGS = (
    "i saw this film with friends .",
    "we watched the movie last week .",
    "i watched this movie with family .",
    "my friends saw the film last night .",
)
SUBJECTS = ("plot", "acting", "music", "ending", "cast", "script", "director", "story")
DEGREES = ("", "", "really", "very", "quite", "truly")
PRAISE = ("superb", "great", "moving", "funny", "clever", "beautiful", "perfect", "charming")
BLAME = ("awful", "boring", "weak", "dull", "silly", "terrible", "stupid", "tedious")
VERDICTS = (("i hated it .", "avoid it .", "what a waste ."), ("i loved it .", "see it .", "what a joy ."))

_TEXTS = (*OPENINGS, "the is .", *SUBJECTS, *DEGREES, *PRAISE, *BLAME, *(text for texts in VERDICTS for text in texts))
WORDS: tuple[str, ...] = tuple(dict.fromkeys(word for text in _TEXTS for word in text.split()))
"""A token's number is its word's place here."""
_NUMBERS = {word: number for number, word in enumerate(WORDS)}

WIDTH = 16
TRAINING_STEPS, TRAINING_REVIEWS, TRAINING_TOKENS = 60, 64, 32
"""Of the classifier: steps, reviews in each, and the words of the longest."""


class Reviews:
    """Reviews drawn from `seed` and the step, as likely positive as negative."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        self.device = device

    def sequences(self, step: int, count: int, length: int) -> torch.Tensor:
        return self.labelled(step, count, length)[0]

    def labelled(self, step: int, count: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Reviews of `length` words, int64 [count, length], and whether each is positive, bool [count]."""
        random = Random(f"{self.seed} {step}")
        positive = [random.random() < 0.5 for _ in range(count)]
        rows = [_review(random, liked, length) for liked in positive]
        return torch.tensor(rows, device=self.device), torch.tensor(positive, device=self.device)


def _review(random: Random, liked: bool, length: int) -> list[int]:
    words = random.choice(OPENINGS).split()
    while len(words) < length:
        if random.random() < 0.25:
            words += random.choice(VERDICTS[liked]).split()
        else:
            said = random.choice(PRAISE if liked else BLAME)
            words += f"the {random.choice(SUBJECTS)} is {random.choice(DEGREES)} {said} .".split()
    return [_NUMBERS[word] for word in words[:length]]


def text(tokens: Sequence[int] | torch.Tensor) -> str:
    """The words of one row of tokens; `?` for a token that is none."""
    return " ".join(WORDS[token] if token < len(WORDS) else "?" for token in map(int, tokens))


class ReviewClassifier(nn.Module):
    """Scores of token ids [B, T]: fp32 [B], the log-odds that a review is positive. `vocabulary`: tokens that may come."""

    def __init__(self, vocabulary: int, device: torch.device) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, WIDTH, device=device)
        self.score = nn.Linear(WIDTH, 1, device=device)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        score: torch.Tensor = self.score(self.words(tokens).mean(dim=1)).squeeze(-1)
        return score


def trained_classifier(vocabulary: int, device: torch.device) -> ReviewClassifier:
    """A classifier that was trained on the host on reviews of a seed of its own; on a device without values, its shape."""
    if device.type == "meta":
        return ReviewClassifier(vocabulary, device)
    with torch.random.fork_rng([]), torch.enable_grad():
        torch.manual_seed(0)
        host = torch.device("cpu")
        classifier, reviews = ReviewClassifier(vocabulary, host), Reviews(2**31, host)
        optimizer = torch.optim.Adam(classifier.parameters(), lr=0.05)
        for step in range(TRAINING_STEPS):
            tokens, positive = reviews.labelled(step, TRAINING_REVIEWS, TRAINING_TOKENS - step % 16)
            loss = F.binary_cross_entropy_with_logits(classifier(tokens), positive.float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return classifier.to(device)
