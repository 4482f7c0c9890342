"""The report counts weights and arithmetic, and calls theory theory."""

from dcil_dsl.exporting.report import make_report, show_report


def test_arithmetic_shrinks_with_the_zeros_of_each_layer(plan, tensors):
    report = make_report(plan, tensors)
    by_name = {layer.parameter: layer for layer in report.layers}
    assert by_name["b.weight"].macs == 100 and by_name["b.weight"].macs_theoretical == 25
    assert report.macs == 400 and report.macs_theoretical == 100 + 25 + 10 + 100


def test_buffers_of_integers_are_not_counted_as_numbers(plan, tensors):
    report = make_report(plan, tensors)
    assert report.num_parameters == 20 + 40 + 30 + 6
    assert report.num_nonzero == 20 + 10 + 3 + 6


def test_the_text_never_says_sparse_arithmetic_without_the_word_theoretical(plan, tensors):
    report = make_report(plan, tensors)
    for line in show_report(report).splitlines():
        if "235" in line:
            assert "theoretical" in line
    assert "Zeros do not make dense kernels faster" in show_report(report)
    assert all("theoretical" in key for key in report.to_dict() if "macs_" in key)
    assert max(map(len, show_report(report).splitlines())) <= 100
