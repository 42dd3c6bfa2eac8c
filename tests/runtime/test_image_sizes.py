"""The sizes that `get_image_features` is given are known while it runs, and the method is put back exactly."""

import inspect

import pytest
import torch

from lvlm_attn.runtime.image_sizes import GivenSizes
from tests.tiny import NAMES, tiny_inputs, tiny_model

SIZES = ("image_sizes", "batch_num_images")


def encoder_of(base):
    return base.visual if hasattr(base, "visual") else base.vision_tower


def watched(base, sizes):
    """Every answer of `sizes` while the encoder runs, and the handle that ends this."""
    seen = []
    handle = encoder_of(base).register_forward_pre_hook(lambda *_: seen.append(dict(sizes.given)))
    return seen, handle


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_known_inside_the_encoder_and_nowhere_else(name):
    model = tiny_model(name)
    base, inputs = model.model, tiny_inputs(name, model, [(1,), (2,)])
    want = {key: inputs[key] for key in SIZES if key in inputs}
    sizes = GivenSizes(base)
    signature = inspect.signature(base.get_image_features)
    sizes.install()
    seen, handle = watched(base, sizes)
    assert inspect.signature(base.get_image_features) == signature
    with torch.no_grad():
        model(**inputs)
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert len(seen) == 2
    for given in seen:
        assert given.keys() == want.keys()
        assert all(torch.equal(given[key], want[key]) for key in want)
    assert sizes.given == {}
    handle.remove()
    sizes.remove()
    assert "get_image_features" not in vars(base)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_are_removed_in_any_order(order):
    model = tiny_model("llava_next")
    base, inputs = model.model, tiny_inputs("llava_next", model, [(1,)])
    both = [GivenSizes(base), GivenSizes(base)]
    for sizes in both:
        sizes.install()
    for place, left in zip(order, (True, False)):
        both[place].remove()
        assert ("get_image_features" in vars(base)) is left
        if left:
            seen, handle = watched(base, both[1 - place])
            with torch.no_grad():
                model(**inputs)
            assert torch.equal(seen[0]["image_sizes"], inputs["image_sizes"])
            handle.remove()
    both[0].remove()
    assert "get_image_features" not in vars(base)


def test_a_method_of_the_users_own_is_put_back():
    model = tiny_model("llava_next")
    base, inputs = model.model, tiny_inputs("llava_next", model, [(1,)])
    plain, calls = base.get_image_features, []

    def own(*args, **kwargs):
        calls.append(kwargs)
        return plain(*args, **kwargs)

    base.get_image_features = own
    sizes = GivenSizes(base)
    sizes.install()
    with torch.no_grad():
        model(**inputs)
    sizes.remove()
    assert len(calls) == 1
    assert vars(base)["get_image_features"] is own


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_encoding_cut_short_leaves_no_sizes(error):
    model = tiny_model("llava_next")
    base, inputs = model.model, tiny_inputs("llava_next", model, [(1,)])
    sizes = GivenSizes(base)
    sizes.install()

    def stop(*_):
        raise error

    handle = encoder_of(base).register_forward_pre_hook(stop)
    with torch.no_grad(), pytest.raises(error):
        model(**inputs)
    assert sizes.given == {}
    handle.remove()
    sizes.remove()
    assert "get_image_features" not in vars(base)
