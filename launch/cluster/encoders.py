"""Weights of encoders for jobs whose nodes have no network (model.weights=imagenet).

They are fetched where a training is submitted, into a cache that its job reads.
"""

import sys
from collections.abc import Iterable
from dataclasses import replace

from launch.cluster.profiles import Profile
from model.encoder_cache import CACHE, IMAGENET, cache_folder, folder_of, is_there
from model.fetch import fetch, place_of
from train.config import TrainConfig
from train.runs.warm_start import needs_encoder


def with_encoders(trainings: Iterable[TrainConfig], profile: Profile, *, is_tried: bool) -> Profile:
    """Fetch the weights that trainings begin with, if they are not in the cache; return the profile
    with the variable by which jobs find that, and without it where they need no weights.

    `is_tried`: fetch nothing, and say what would be fetched. Raises UserError where weights cannot
    be fetched.
    """
    needed = {
        config.model.encoder
        for config in trainings
        if config.model.weights == IMAGENET and needs_encoder(config)
    }
    if not needed:
        return without_cache(profile)
    cache = cache_folder(profile.environment.get(CACHE, ""))
    for encoder in sorted(needed):
        if is_there(encoder, cache):
            continue
        doing = "this would fetch" if is_tried else "fetching"
        into = folder_of(encoder, cache)
        place_of(encoder)  # refused before anything is said to be done
        print(f"{doing} the ImageNet weights of {encoder} into {into}", file=sys.stderr)
        if not is_tried:
            print(fetch(encoder, cache)[1].as_source(), file=sys.stderr)
    return replace(profile, environment=profile.environment | {CACHE: str(cache)})


def without_cache(profile: Profile) -> Profile:
    """Return a profile without the variable: a container would mount its folder, which must exist
    then."""
    others = {key: value for key, value in profile.environment.items() if key != CACHE}
    return replace(profile, environment=others)
