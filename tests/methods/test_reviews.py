"""Reviews and their classifier: what imdb and a sentiment classifier are where there is no hub."""

from __future__ import annotations

import pytest
import torch

from vrambench.methods.errors import ConfigurationError
from vrambench.methods.job import Job
from vrambench.methods.reviews import BLAME, PRAISE, WORDS, Reviews, text, trained_classifier

CPU = torch.device("cpu")


def test_reviews_depend_on_the_seed_and_the_step_alone() -> None:
    first = Reviews(0, CPU).sequences(3, 5, 20)
    assert (first.shape, first.dtype) == ((5, 20), torch.int64)
    assert torch.equal(first, Reviews(0, CPU).sequences(3, 5, 20))
    assert not torch.equal(first, Reviews(0, CPU).sequences(4, 5, 20))
    assert not torch.equal(first, Reviews(1, CPU).sequences(3, 5, 20))


def test_a_review_says_one_thing() -> None:
    tokens, positive = Reviews(0, CPU).labelled(0, 200, 40)
    assert 60 < positive.sum() < 140
    for row, liked in zip(tokens, positive, strict=True):
        words = set(text(row).split())
        assert words.isdisjoint(BLAME if liked else PRAISE)
        assert not words.isdisjoint(PRAISE if liked else BLAME)
    assert text([0, len(WORDS)]).endswith(" ?")


def test_the_classifier_tells_reviews_that_it_has_not_read() -> None:
    classifier = trained_classifier(256, CPU)
    tokens, positive = Reviews(0, CPU).labelled(0, 500, 24)
    with torch.no_grad():
        assert ((classifier(tokens) > 0) == positive).float().mean() > 0.99
        assert classifier(tokens[:, :6]).abs().max() < classifier(tokens).abs().median(), "a beginning says nothing"
    again = trained_classifier(256, CPU)
    assert torch.equal(again.words.weight, classifier.words.weight)


def test_training_the_classifier_draws_nothing_of_a_jobs_random_numbers() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with torch.no_grad():
        trained_classifier(64, CPU)
    assert torch.equal(torch.rand(3), expected)


def test_a_model_with_fewer_tokens_than_words_is_told(cell, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    from vrambench.methods import data
    from vrambench.methods.device import get_device

    monkeypatch.setattr(data, "WORDS", WORDS * 20)
    job = Job(cell(data="reviews"), get_device("cpu"))
    with pytest.raises(
        ConfigurationError, match=r"data: reviews have [\d,]+ words, and the model 'tiny' has \d+ tokens"
    ):
        job.load()
