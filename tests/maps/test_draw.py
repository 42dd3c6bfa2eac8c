"""Pictures: what they say, what they show, and that they can be written and read without colours."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.layout.prompt import Block, ImageGrid
from lvlm_attn.maps import draw
from lvlm_attn.maps.draw.heat import heat_of
from lvlm_attn.maps.draw.style import DIVERGING, SEQUENTIAL, plain
from lvlm_attn.maps.onto_image import MapImage
from tests.maps.made import hand_made

matplotlib = pytest.importorskip("matplotlib", reason="the extra viz is not installed")


def words_of(figure):
    """All text of a figure, joined."""
    return "\n".join(item.get_text() for item in figure.findobj(matplotlib.text.Text))


def test_an_overlay_says_token_layers_heads_view_and_unit():
    shown = words_of(hand_made()["hotdog"].overlay())
    for part in ("What “hotdog” attends to", "mean of layers 0 to 1", "mean of 2 heads", "raw weights"):
        assert part in shown
    assert "attention weight per patch (%)" in shown
    assert "does not prove" in shown
    one = words_of(hand_made().layer(1).head(0).view("relative").overlay("dog"))
    assert "layer 1, head 0, minus the mean over 7 tokens" in one
    assert "attention weight above the mean per patch (%)" in one


def test_an_overlay_says_who_was_asked_what_and_what_its_marks_mean():
    maps = hand_made()
    maps = replace(maps, meta={**maps.meta, "layers": 6, "interventions": ["var:rho=0.5"]})
    shown = words_of(maps.overlay("dog"))
    for part in ("Model: made.", "Prompt: “Say it:”", "Answer (var:rho=0.5): “A hotdog. A dog.”", "Ring: "):
        assert part in shown
    assert "mean of layers 0 to 1 (of 0 to 5)" in shown
    assert "layer 1 (of 0 to 5)," in words_of(maps.layer(1).overlay("dog"))
    assert "mean of all 2 layers" in words_of(replace(maps, meta={**maps.meta, "layers": 2}).overlay("dog"))
    assert f"{100 * maps['dog'].grid()[0].max():.2g} %" in shown
    assert shown.count("pixels from the left") == shown.count("pixels from the top") == 2


def test_a_patch_has_its_weight_as_its_colour():
    maps = hand_made()["dog"]
    heat, grid = heat_of(maps), maps.grid()[0]
    assert np.allclose(heat.values[::10, ::10], 100 * grid)
    assert heat.mass == pytest.approx(grid.sum())


def test_every_token_has_a_map_in_the_strip():
    maps = hand_made()
    figure = maps.strip(columns=4)
    visible = [axes for axes in figure.axes if axes.get_visible() and axes.get_title()]
    assert [axes.get_title().split("\n")[0] for axes in visible[:2]] == ["picture", "A"]
    assert len(visible) == 1 + len(maps)
    assert np.array_equal(visible[0].images[0].get_array(), np.asarray(maps.images[0][0].picture))
    limits = {image.get_clim() for axes in visible for image in axes.images[1:]}
    assert len(limits) == 1
    with pytest.raises(LvlmAttnError, match="1 to 60 tokens"):
        maps[7:].strip()


def test_pictures_by_layer():
    maps = hand_made(layers=3, heads=4)
    grid = words_of(maps.layer_head_grid())
    assert "layer" in grid
    assert "share of the attention (%)" in grid
    mass = 100 * float(maps.weights[1][0, 2, :, 2:14].sum(-1).mean())
    assert f"{mass:.3g}" in grid
    assert "Attention of 7 tokens, mean, on the image" in grid
    nothing = {
        layer: value.index_fill(-1, torch.arange(2, 14), 2e-17) for layer, value in maps.weights.items()
    }
    nothing[0] = maps.weights[0]
    word = words_of(replace(maps, weights=nothing)["hotdog"].layer_head_grid())
    assert "Attention of “hotdog” on the image" in word
    assert "e-" not in word
    assert word.split("\n").count("0") >= 8
    assert "entropy (nats)" in words_of(maps.by_layer())
    stack = maps.class_plot()
    heights = [patch.get_height() for patch in stack.axes[0].patches]
    assert sum(heights) == pytest.approx(300)
    assert "image patches" in words_of(stack)


def test_sinks_are_framed():
    maps = hand_made()
    scores = torch.zeros(1, maps.layout.length)
    scores[0, 5] = 30
    figure = replace(maps, sink_scores={0: scores, 1: 0 * scores}).sink_map()
    shown = words_of(figure)
    assert "layer 0\n1 sink, 10.2 %" in shown
    assert "layer 1\nno sink" in shown
    frames = [patch for axes in figure.axes for patch in axes.patches]
    assert {frame.get_xy() for frame in frames if isinstance(frame, matplotlib.patches.Rectangle)} >= {
        (2.5, -0.5)
    }
    with pytest.raises(LvlmAttnError, match="no block 2"):
        maps.sink_map(block=2)


def test_comparing_shows_the_difference():
    bare = hand_made()
    other = replace(hand_made(seed=1), meta={**bare.meta, "interventions": ["var:rho=0.5"]})
    figure = bare["dog"].compare(other["dog"])
    shown = words_of(figure)
    for part in (
        "bare: “dog”",
        "var:rho=0.5: “dog”",
        "difference",
        "change of attention weight per patch (percentage points)",
        "dotted: fell by over ",
        " points on the picture",
        "Answer (var:rho=0.5)",
    ):
        assert part in shown
    assert figure.axes[0].get_title() == "picture"
    drawn = figure.axes[3].images[-1]
    wanted = other["dog"].grid()[0] - bare["dog"].grid()[0]
    assert np.allclose(np.asarray(drawn.get_array())[::10, ::10], 100 * wanted)
    with pytest.raises(LvlmAttnError, match="different pictures"):
        bare.compare(hand_made(size=(50, 30)))
    with pytest.raises(LvlmAttnError, match="other views, layers or heads"):
        bare.compare(other.layer(1))


def test_ratios_have_a_log_scale_around_1():
    maps, neutral = hand_made(), hand_made(seed=2)[:1]
    weights = {
        layer: value.index_fill(-1, torch.tensor([5]), 1e-9) for layer, value in neutral.weights.items()
    }
    shown = maps["dog"].view("contrast", neutral=replace(neutral, weights=weights))
    figure = shown.overlay()
    norm = figure.axes[1].images[-1].norm
    most = float(heat_of(shown).values.max())
    assert most > 1e3
    assert norm.vmax >= most
    assert float(norm(1.0)) == pytest.approx(0.5)
    text = words_of(figure)
    for part in ("(log scale)", f"{most:.2g}x", "the neutral prompt “Say it:”"):
        assert part in text
    other = maps["hotdog"].view("contrast", neutral=replace(neutral, weights=weights))
    assert "second divided by first" in words_of(shown.compare(other))


def test_methods_with_many_parameters_are_compared_by_name():
    bare = hand_made()
    names = ["var:tau=3.5355339059327378,sink_dims=[9,84],layers=2..4", "vhr:layers=[1,3..5]"]
    other = replace(hand_made(seed=1), meta={**bare.meta, "interventions": names})
    assert "var+vhr: “dog”" in words_of(bare["dog"].compare(other["dog"]))


def test_divergence():
    from lvlm_attn.measures.diagnostics import Divergence

    measured = Divergence(torch.rand(1, 3, 4), (0, 1, 2))
    assert "VHD" in words_of(draw.vhd_heat_map(measured))
    with pytest.raises(LvlmAttnError, match="no sample 1"):
        draw.vhd_heat_map(measured, sample=1)
    figure = draw.vhd_along(["A", " dog", "."], [1.0, 2.0, 1.5], hallucinated=[1])
    assert "not in the picture" in words_of(figure)
    with pytest.raises(LvlmAttnError, match="one value per token"):
        draw.vhd_along(["A"], [])


@pytest.mark.parametrize("size", [(40, 30), (1, 60), (60, 1), (500, 20)])
def test_any_shape_of_picture(tmp_path, size):
    maps = hand_made(size=size)
    for figure in (maps["dog"].overlay(), maps.strip(), maps["dog"].compare(maps["hotdog"])):
        figure.savefig(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").width > 100


def test_pictures_cropped_by_the_processor_are_hatched(tmp_path):
    from lvlm_attn.maps.geometry import Frame, Level

    level = Level(Frame(10, 0, 30, 30), 3, 4, ((0, 0, 0),))
    maps = hand_made()
    maps = replace(maps, images=((MapImage((40, 30), (level,), maps.images[0][0].picture),),))
    maps["dog"].overlay().savefig(tmp_path / "a.png")
    assert np.isnan(heat_of(maps["dog"]).values[:, :10]).all()


def test_svg_keeps_odd_words_of_a_model_as_words(tmp_path):
    words = [" $x^2$", " <b>", " \\frac", " \n", " &amp;", " 狗"]
    maps = hand_made(words=words)
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        maps.strip().savefig(tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert "$x^2$" in text
    assert "&lt;b&gt;" in text
    assert plain("$") == r"\$"
    maps[:1].overlay().savefig(tmp_path / "b.svg")


def test_colours_can_be_told_apart_in_grey():
    """Lightness rises evenly with the value; signed colours are light in the middle and dark at both ends."""
    from matplotlib import colormaps

    def lightness(name):
        red, green, blue, _ = colormaps[name](np.linspace(0, 1, 64)).T
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    assert (np.diff(lightness(SEQUENTIAL)) > 0).all()
    signed = lightness(DIVERGING)
    assert 28 <= signed.argmax() <= 36
    assert signed[[0, -1]].max() < 0.5


def test_without_matplotlib():
    code = (
        "import sys; sys.modules['matplotlib'] = None; sys.modules['matplotlib.figure'] = None\n"
        "sys.modules['matplotlib.backends.backend_agg'] = None\n"
        "from tests.maps.made import hand_made\n"
        "try: hand_made()['dog'].overlay()\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "Pictures need matplotlib; install it with `pip install lvlm-attn[viz]`."


def test_drawing_never_touches_pyplot():
    code = (
        "import sys; from tests.maps.made import hand_made\n"
        "figure = hand_made()['dog'].overlay(); assert figure._repr_png_()[:4] == b'\\x89PNG'\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tiles_and_thumbnail():
    from lvlm_attn.maps.geometry import Frame, Level

    grid = ImageGrid((Block(2, 2, "tile"), Block(2, 2, "tile"), Block(2, 2, "thumbnail")))
    maps = hand_made(grid=grid, size=(40, 20))
    frame = Frame(0, 0, 40, 20)
    levels = (Level(frame, 2, 2, ((2, 0, 0),)), Level(frame, 2, 4, ((0, 0, 0), (1, 0, 2))))
    maps = replace(maps, images=((MapImage((40, 20), levels, maps.images[0][0].picture),),))["dog"]
    fine, coarse = heat_of(maps, level="fine"), heat_of(maps, level="coarse")
    assert fine.mass + coarse.mass == pytest.approx(maps.pixels().sum())
    assert fine.values[0, 0] == pytest.approx(100 * maps.grid()[0][0, 0])
    assert coarse.values[0, 0] == pytest.approx(100 * maps.grid()[2][0, 0])
    assert heat_of(maps).values[0, 0] == pytest.approx(fine.values[0, 0] + coarse.values[0, 0] / 2)
