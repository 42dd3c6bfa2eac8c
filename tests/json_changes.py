"""JSON values with something else somewhere in them."""

import copy


def places_in(value, here=()):
    """Where in a value something stands, the value itself first."""
    yield here
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places_in(item, (*here, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from places_in(item, (*here, i))


def changed(value, place, new):
    """The value with something else at a place."""
    if not place:
        return new
    found = copy.copy(value)
    found[place[0]] = changed(value[place[0]], place[1:], new)
    return found
