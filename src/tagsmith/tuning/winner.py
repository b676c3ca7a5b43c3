"""The winner of a search, fitted to the time that is left for it."""

from __future__ import annotations

import numpy as np

from tagsmith.config import Config
from tagsmith.tuning.budget import Clock, latest
from tagsmith.tuning.recipes import Entrant, Recipe
from tagsmith.tuning.soup import METHODS as SOUPS

WORTH_AN_EPOCH = 1.25
"""How many times as many rows must be read, counted in each epoch, for one epoch more to be worth leaving some out."""

MOST_OF_A_SOUP, SOUP_SHARE, LEAST_SOUP = 3, 0.9, 2
"""Tunings that are averaged at most; of the time left, what they may take by the forecast; and for how many of them
the trials leave time."""


def least_rows(entrant: Entrant, method: str) -> int:
    """Training rows that a winner learns from at least, whatever the time."""
    return min(200 if method == "head" else 1000, len(entrant.parts["train"].truth))


def fit_to_time(
    recipe: Recipe, entrant: Entrant, config: Config, clock: Clock, *, reserved: float = 0.0, pace: float = 1.0
) -> tuple[Recipe, list[str]]:
    """The winner with as many epochs as there is time for, and on fewer rows where there is not even time for one.

    An epoch more is made on most of the rows where they leave time for it. Epochs that the user asked for are all made.
    `reserved` are seconds that other work will take; `pace` is how many times as long as forecast its trial took.
    """
    own, left = recipe.applied(config).tuning, (clock.left(latest([entrant])) - reserved) / pace
    if own.refit:  # the same once more, and on the validation rows too
        left /= 2 + len(entrant.parts["validation"].truth) / len(entrant.parts["train"].truth)
    wanted, told = own.epochs, []
    fewest = wanted if own.method == "head" or "epochs" in config.tuning.model_fields_set else 1
    epochs = wanted
    while epochs > fewest and recipe.seconds(entrant, config, epochs=epochs) > left:
        epochs -= 1
    total, least = len(entrant.parts["train"].truth), least_rows(entrant, own.method)

    def most_rows(epochs: int, *, at_least: float) -> int | None:
        """The most training rows that there is time for, so many times over."""
        able = (rows for rows in (int(0.98**i * total) for i in range(500)) if rows >= at_least)
        return next((rows for rows in able if recipe.seconds(entrant, config, rows=rows, epochs=epochs) <= left), None)

    rows = most_rows(epochs, at_least=least) or least
    if rows == total and epochs < wanted:
        fewer = most_rows(epochs + 1, at_least=WORTH_AN_EPOCH * total * epochs / (epochs + 1))
        rows, epochs = (total, epochs) if fewer is None else (fewer, epochs + 1)
    if epochs < wanted:
        told.append(f"There is time for {epochs} of {wanted} epochs.")
        recipe = recipe.with_tuning(epochs=epochs)
    if rows < total:
        told.append(f"There is time for {rows} of {total} training rows: a sample of each label's rows is learnt from.")
        recipe = recipe.with_tuning(most_rows=rows)
    members = own.soup if own.method in SOUPS else 1
    if not told and own.method in SOUPS and not leaves_no_soup(config):
        members = int(np.clip(SOUP_SHARE * left / max(recipe.seconds(entrant, config), 1e-3), 1, MOST_OF_A_SOUP))
    if members > own.soup:
        told.append(f"There is time for {members} tunings from one start, whose weights are averaged.")
    return recipe if members == own.soup else recipe.with_tuning(soup=members), told


def leaves_no_soup(config: Config) -> bool:
    """Whether the user said how many tunings are averaged, or asks for other ones that take as long."""
    return "soup" in config.tuning.model_fields_set or config.tuning.refit or config.tuning.seeds > 1
