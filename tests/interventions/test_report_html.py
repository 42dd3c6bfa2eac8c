"""The report as a notebook shows it."""

from lvlm_attn.interventions.report import Report


def test_tables_and_escapes():
    shown = Report("LLaVA <x>", "sdpa", ("vhr", "a<b"), ([{"layer": 1, "heads": 2.0}], []))._repr_html_()
    assert "LLaVA &lt;x&gt;, backend sdpa" in shown
    assert "<th>layer</th><th>heads</th>" in shown
    assert '<td style="text-align:right">2.00</td>' in shown
    assert "<b>a&lt;b</b>" in shown
    assert "nothing yet" in shown
    assert "no intervention changes anything" in Report("m", "sdpa", (), ())._repr_html_()


def test_skipped_layers_are_named_as_in_the_text():
    report = Report("M", "sdpa", ("var",), ([{"layer": 3}],), skipped=("0..2 <x>",))
    assert "layers 0..2 <x> have no softmax attention and are skipped" in str(report)
    assert "layers 0..2 &lt;x&gt; have no softmax attention and are skipped" in report._repr_html_()
