"""The families that can be exported, and which one a checkpoint belongs to."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pixelrt.errors import UnknownNetworkError, UsageError
from pixelrt.export.checkpoint import Checkpoint
from pixelrt.export.families import cyclegan, pix2pix, srgan, swin2sr
from pixelrt.export.recipe import Recipe, Tensors, Variant

RECIPES: tuple[Recipe, ...] = (swin2sr.RECIPE, pix2pix.RECIPE, cyclegan.RECIPE, srgan.RECIPE)

PREFERRED_GROUPS = ("params_ema", "g_ema", "ema", "generator", "netG", "G_AB")
"""Where a file holds several fitting state dicts: averaged weights first, then generators."""


@dataclass(frozen=True)
class Match:
    """A state dict in a checkpoint recognised as a variant of a family."""

    recipe: Recipe
    variant: Variant
    group: str


def get(name: str) -> Recipe:
    """The recipe of that name. Raises ``UsageError`` naming the known ones."""
    for recipe in RECIPES:
        if recipe.name == name:
            return recipe
    known = ", ".join(recipe.name for recipe in RECIPES)
    raise UsageError(f"there is no family {name!r}", expected=known)


def detect(checkpoint: Checkpoint, family: str | None = None) -> Match:
    """Find the family, variant and state dict. Of several, the most specific wins.

    Raises ``UnknownNetworkError`` listing what was looked for and the nearest family.
    """
    recipes = RECIPES if family is None else (get(family),)
    found = [
        Match(recipe, variant, group)
        for recipe in recipes
        for variant in recipe.variants
        for group, tensors in checkpoint.groups.items()
        if missing_keys(variant, tensors) == []
    ]
    if not found:
        raise _unknown(checkpoint, recipes)
    return max(found, key=lambda m: (len(m.variant.keys), -_group_rank(m.group)))


def missing_keys(variant: Variant, tensors: Tensors) -> list[str]:
    """The patterns of a variant that no parameter name matches."""
    return [
        pattern
        for pattern in variant.keys
        if not any(re.fullmatch(pattern, name) for name in tensors)
    ]


def _group_rank(group: str) -> int:
    last = group.rpartition(".")[2]
    return PREFERRED_GROUPS.index(last) if last in PREFERRED_GROUPS else len(PREFERRED_GROUPS)


def _unknown(checkpoint: Checkpoint, recipes: tuple[Recipe, ...]) -> UnknownNetworkError:
    names = [name for tensors in checkpoint.groups.values() for name in tensors]
    scored = [
        (1 - len(missing_keys(variant, tensors)) / len(variant.keys), recipe, variant, tensors)
        for recipe in recipes
        for variant in recipe.variants
        for tensors in checkpoint.groups.values()
    ]
    looked_for = "; ".join(
        f"{recipe.name}/{variant.name}: {', '.join(variant.keys)}"
        for recipe in recipes
        for variant in recipe.variants
    )
    hint = "name the family with --family if it is one of these"
    best = max(scored, key=lambda item: item[0], default=None)
    if best is not None and best[0] > 0:
        lacking = ", ".join(missing_keys(best[2], best[3]))
        hint = f"nearest is {best[1].name}/{best[2].name}, but nothing matches {lacking}"
    return UnknownNetworkError(
        f"no family recognises the weights in {checkpoint.path}",
        found=f"{len(names)} tensors: {', '.join(names[:6])}{', ...' if names[6:] else ''}",
        expected=f"parameter names of one of {looked_for}",
        hint=hint,
    )
