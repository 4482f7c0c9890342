"""What a recipe's selectors mean for a model, and what is said where they mean nothing."""

import re
import threading
import warnings
from collections import OrderedDict
from random import Random

import pytest
from support.resolving import MIX, TRAIN, Net, plan_of, resolve
from torch import nn

from dcil_dsl.diagnostics import Diagnostics
from dcil_dsl.lang import loads
from dcil_dsl.lang.selectors import Glob, Regex
from dcil_dsl.model.layers import Layer, Weight
from dcil_dsl.plan.select import Selection, claim_layers

CONVS = [
    "stem",
    "layer1.0.conv1",
    "layer1.0.conv2",
    "layer1.1.conv1",
    "layer1.1.conv2",
    "layer2.0.conv1",
    "layer2.0.conv2",
]
EVERY = [*CONVS, "head"]


def selected(selector, model=None):
    """The prunable layers that a selector means, by pruning them."""
    plan = plan_of(f"prune {selector} to 50%", model)
    return [layer.module for layer in plan.layers if layer.group is not None]


@pytest.mark.parametrize(
    "selector, paths",
    [
        ("Conv2d", CONVS),
        ("Linear", ["head"]),
        ('"stem"', ["stem"]),
        ('"layer1.0.conv1"', ["layer1.0.conv1"]),
        ('"layer?.0.conv1"', ["layer1.0.conv1", "layer2.0.conv1"]),
        ('"layer1.*.conv2"', ["layer1.0.conv2", "layer1.1.conv2"]),
        ('"**.conv1"', ["layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1"]),
        ('"layer1"', CONVS[1:5]),
        ('"layer?.0"', [*CONVS[1:3], *CONVS[5:]]),
        ('"*"', EVERY),
        ('"**"', EVERY),
        ('"l*"', CONVS[1:]),
        ('re"layer1\\.\\d\\.conv1"', ["layer1.0.conv1", "layer1.1.conv1"]),
        ('re"layer1\\.1"', CONVS[3:5]),
        ("first Conv2d", ["stem"]),
        ("first 3 Conv2d", CONVS[:3]),
        ("last Conv2d", ["layer2.0.conv2"]),
        ("last 2 Conv2d", CONVS[-2:]),
        ('Conv2d in "layer2"', CONVS[5:]),
        ('Conv2d in "layer?.0"', [*CONVS[1:3], *CONVS[5:]]),
        ("Conv2d where groups == 4", ["layer2.0.conv1"]),
        ("Conv2d where groups != 4 and in_channels >= 8", [*CONVS[1:5], CONVS[6]]),
        ("Conv2d where kernel_size == 3", ["stem", *CONVS[1:7:2]]),
        ("Conv2d where in_channels < 8", ["stem"]),
        ("Linear where out_features <= 10", ["head"]),
        ("Conv2d, Linear", EVERY),
        ("Conv2d, Linear except first Conv2d, last Linear", CONVS[1:]),
        ('Conv2d except "layer1", "stem"', CONVS[5:]),
        ('Linear, "stem"', ["stem", "head"]),
        ('"module.layer1.0.conv1"', ["layer1.0.conv1"]),
        ('"stem.weight"', ["stem"]),
        ('"module._orig_mod.layer1.0.conv?.weight"', CONVS[1:3]),
    ],
)
def test_a_selector_means_these_layers_in_execution_order(selector, paths):
    assert selected(selector) == paths


class Padded(nn.Conv2d):
    pass


def test_a_type_means_the_classes_derived_from_it_too():
    model = nn.Sequential(Padded(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 4))
    assert selected("Conv2d", model) == ["0", "1"]
    assert selected("Padded", model) == ["0"]


def test_a_named_selector_is_what_it_names():
    plan = plan_of('layers inner = Conv2d in "layer1"\nprune inner except first inner to 50%')
    assert plan.groups[0].parameters == tuple(f"{path}.weight" for path in CONVS[2:5])


@pytest.mark.parametrize(
    "pattern, names, others",
    [
        ("a.*", ["a.b", "a."], ["a.b.c", "ab"]),
        ("a.**", ["a.b", "a.b.c"], ["a", "b.a.c"]),
        ("**.c", ["a.c", "a.b.c"], ["c", "a.bc"]),
        ("a?", ["ab"], ["a", "a.", "abc"]),
        ("a[1]+(b)", ["a[1]+(b)"], ["a1b", "a1"]),
        ("a.b", ["a.b"], ["axb"]),
    ],
)
def test_a_glob_matches_names_whole_and_nothing_in_it_is_a_regex(pattern, names, others):
    glob = Glob(pattern)
    assert [name for name in [*names, *others] if glob.matches(name)] == names


@pytest.mark.parametrize(
    "selector, message, help",
    [
        ('"*.conv1"', 'no layer matches `"*.conv1"`', None),
        (
            '"layer1.0.conv3"',
            'no layer matches `"layer1.0.conv3"`',
            '`"layer1.0.conv1"` matches 1 layer',
        ),
        ('"layr1"', 'no layer matches `"layr1"`', '`"layer1"` matches 8 layers'),
        (
            '"layer?.*.convv1"',
            'no layer matches `"layer?.*.convv1"`',
            '`"layer?.*.conv1"` matches 3 layers',
        ),
        ('"nothing.like.this"', 'no layer matches `"nothing.like.this"`', None),
        (
            "Conv3d",
            "no layer of type `Conv3d` in Net",
            "did you mean `Conv2d`, of which the model has 7 layers?",
        ),
        (
            "Transformer",
            "no layer of type `Transformer` in Net",
            "the model has `Conv2d` (7), `Linear` (1), `BatchNorm2d` (3)",
        ),
        ('re"conv1"', 'no layer matches `re"conv1"`', None),
        ("first 9 Conv2d", "`first 9 Conv2d` asks for 9 layers, there are 7", None),
        ('Conv2d in "layr2"', 'no part of Net matches `"layr2"`', '`"layer2"` matches 4 layers'),
        ('Linear in "layer2"', 'not even the one layer lies in `"layer2"`', None),
        ("Conv2d where groups == 3", "none of the 7 layers has `groups == 3`", None),
    ],
)
def test_a_selector_that_means_nothing_is_reported_with_the_nearest_real_name(
    selector, message, help
):
    _, found = resolve(f"prune {selector} to 50%")
    assert [(d.code, d.message, d.help) for d in found] == [("E301", message, help)]


def test_each_part_of_a_selector_has_to_match():
    _, found = resolve('prune "stem", "nose", "mouth" except "ears" to 50%')
    assert [d.message for d in found] == [
        f'no layer matches `"{name}"`' for name in ("nose", "mouth", "ears")
    ]


def test_an_error_stands_under_the_part_that_is_wrong():
    _, (only,) = resolve('prune Conv2d, "nose" to 50%')
    assert (only.span.text, only.span.line, only.span.column) == ('"nose"', 2, 15)
    assert only.label == "none of the 14 modules of Net"


@pytest.mark.parametrize(
    "selector, message, help",
    [
        (
            "Conv2d where grups == 1",
            "none of the 7 layers has an attribute `grups`",
            "did you mean `groups`?",
        ),
        ("Conv2d where colour == 1", "none of the 7 layers has an attribute `colour`", None),
        (
            "Conv2d where padding_mode >= 2",
            "`padding_mode` of `stem` and of 6 other layers is 'zeros', which does not compare "
            "with 2",
            None,
        ),
        (
            "Conv2d where weight > 0",
            "`weight` of `stem` is a tensor, which does not compare with 0",
            None,
        ),
        (
            "Conv2d where _parameters > 0",
            "`_parameters` of `stem` is dict, which does not compare with 0",
            None,
        ),
    ],
)
def test_an_attribute_that_is_missing_or_does_not_compare_is_reported(selector, message, help):
    _, found = resolve(f"prune {selector} to 50%")
    assert (found[0].code, found[0].message, found[0].help) == ("E307", message, help)


def test_where_compares_each_size_of_a_kernel():
    assert selected(
        "Conv2d where kernel_size >= 2",
        nn.Sequential(nn.Conv2d(3, 3, (1, 3)), nn.Conv2d(3, 3, 2), nn.Conv2d(3, 3, 1)),
    ) == ["1"]


def test_first_counts_in_execution_order_and_not_in_that_of_registration():
    assert next(Net().named_children())[0] == "head"
    assert selected("first Conv2d, Linear") == EVERY[:1] + EVERY[-1:]
    assert selected('first "*"') == ["stem"]


def test_an_attention_by_its_class_is_both_of_its_projections():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))

    both = ["attention", "attention.out_proj"]
    assert selected("MultiheadAttention", Attends()) == both
    assert selected("MultiheadAttention, Linear except last Linear", Attends()) == both


@pytest.mark.parametrize("star", ["*", "**"])
def test_a_glob_of_many_stars_is_matched_without_trying_everything_twice(star):
    for pattern in (f"{star}a" * 20 + f"{star}x", star * 30 + "x", f"a{star}a" * 20 + "x"):
        assert not Glob(pattern).matches("a" * 400)
        assert Glob(pattern).matches("a" * 400 + "x")  # trying everything would never end


def test_a_glob_means_what_its_translation_to_a_regular_expression_means():
    random = Random(3)
    words = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    pieces = ["a", "b", ".", "[", "*", "*", "**", "?"]
    found = 0
    for _ in range(20_000):
        pattern = "".join(random.choice(pieces) for _ in range(random.randint(0, 6)))
        name = "".join(random.choice("aab..[") for _ in range(random.randint(0, 7)))
        parts = [words.get(x, re.escape(x)) for x in re.split(r"(\*\*|\*|\?)", pattern)]
        wanted = re.fullmatch("".join(parts), name) is not None
        assert Glob(pattern).matches(name) == wanted, (pattern, name)
        found += wanted
    assert found > 1000


def test_a_regular_expression_means_what_it_means_in_python():
    names = ["", "a", "aa", "b", "a.b", "1", "{e<=1}", "a{e<=1}", "[", ":", "a]", "a{}", "A", "&"]
    for pattern in (
        "a{e<=1}",
        "[[:alpha:]]",
        "[[:alpha:]]+",
        "a{}",
        "a{,}",
        "a{,2}",
        "a{2}",
        "a{1,}",
        "{",
        "a{1",
        "[a[]",
        "[a&&b]",
        "[]a]",
        "[^]a]",
        r"\[",
        r"[\[a]",
        "(?i)a",
        "(?#[)a{e<=1}",
        "[a{e}]",
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = [name for name in names if re.fullmatch(pattern, name)]
        assert [name for name in names if Regex(pattern).matches(name)] == wanted, pattern


def test_lines_that_match_are_those_that_match_as_names():
    """Against a match of each name, on random expressions."""
    chance = Random(4)
    pieces = r"""a b . \. [ab] (a) (a|bb) (a)? a* b+ a{2} a{,2} b? \w \W \s \S \d \D \b \B \A \Z ^ $
        | [^a] [^]a] []a] [^\W] [\w.] [\s\S] [^b\D] (?:a|b.) (?=.a) (?!b) (?<=a) (?<![^.])
        (?P<n>a|b) .* .*? .+ [^.]+ \x61 \n \1 (?i:A) 1 { {1 [[ab] .*+ (?>a|ab) (?#x)""".split()
    names = sorted(
        {"".join(chance.choices("ab.1 -\t_", k=chance.randrange(1, 7))) for _ in range(60)}
    )
    lines = "".join(f"{name}\n" for name in names)
    known = matched = 0
    for _ in range(4000):
        pattern = "".join(chance.choices(pieces, k=chance.randrange(1, 6)))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                regex = Regex(pattern)
                runs = regex.runs(lines)
        except ValueError:
            continue
        if runs is None:
            continue
        found = [name for run in runs for name in lines[slice(*run)][:-1].split("\n")]
        assert found == [name for name in names if regex.matches(name)], pattern
        known += 1
        matched += len(found)
    assert known > 1000 and matched > 1000


def test_a_name_with_the_end_of_a_line_in_it_is_matched_whole():
    model = nn.Sequential(OrderedDict({f"a{i}\nb": nn.Linear(4, 4) for i in range(70)}))
    assert [d.code for d in resolve('prune re"a[0-9]+" to 50%', model)[1]] == ["E301"]
    assert len(selected('re"a[0-9]+[^a]b"', model)) == 70


LIKE_LETTERS = [
    r"[a-z]+\.{}\.[a-z]+\.conv[{}]",
    r"(blocks|b)\.({}|x)\.part\.(conv{}|y)",
    r"^b.*\.(?:{})\.(?=p).*[{}]$",
]


@pytest.mark.parametrize("name", LIKE_LETTERS)
def test_a_regular_expression_of_common_letters_is_tried_on_all_names_at_once(monkeypatch, name):
    calls = counting(monkeypatch, Regex, "matches")
    rules = [f'prune re"{name.format(i // 4, i % 4)}" to 50%' for i in range(400)]
    owner, codes = claimed(rules, many_layers(400))
    assert owner == {f"{i}.weight": i for i in range(400)} and not codes
    assert len(calls) <= 400 * 30


def test_a_regular_expression_that_does_not_end_is_an_error_off_the_main_thread_too():
    model = nn.Sequential(OrderedDict({"a" * 40: nn.Linear(4, 4)}))
    found = []

    def ask():
        found.extend(resolve('prune re"(a|aa)+[xy]" to 50%', model)[1])

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert [(d.code, d.span.text) for d in found] == [("E323", 're"(a|aa)+[xy]"')]
    assert "takes more than 1 s on the names of Sequential" in found[0].message


def many_layers(number, module=None):
    one = module or nn.Conv2d(4, 4, 1)
    paths = [f"blocks.{i // 4}.part.conv{i % 4}" for i in range(number)]
    return tuple(
        Layer(path, path, one, (Weight(f"{i}.weight", (4, 4)),)) for i, path in enumerate(paths)
    )


def claimed(rules, layers):
    """The owners of the weights, and the codes of what was found."""
    recipe = loads("language 1\n" + "\n".join(rules) + f"\n{MIX}\n{TRAIN}")
    report = Diagnostics()
    owner = claim_layers(recipe.rules, Selection(layers, "Net", report), report)
    return owner, {d.code for d in (*recipe.warnings, *report.found)}


def counting(monkeypatch, owner, name):
    """A list that grows at each call of a method."""
    calls, method = [], getattr(owner, name)

    def counted(self, *args):
        calls.append(args)
        return method(self, *args)

    monkeypatch.setattr(owner, name, counted)
    return calls


class Read:
    """A module's attribute that counts how often it is read."""

    reads = 0

    def __get__(self, module, owner):
        type(self).reads += 1
        return 4


class Convolution(nn.Conv2d):
    width = Read()


@pytest.mark.parametrize("selector", ["Conv2d", "Conv2d where width >= 3", "first 300 Conv2d"])
def test_rules_for_every_layer_look_at_each_layer_once(monkeypatch, selector):
    layers = many_layers(300, Convolution(4, 4, 1))
    reads = Read.reads
    claims = []
    weights = Layer.weights
    monkeypatch.setattr(
        Layer, "weights", property(lambda self: claims.append(1) or weights.fget(self))
    )
    owner, codes = claimed([f"prune {selector} to 50%"] * 300, layers)
    assert set(owner.values()) == {299} and codes == {"W303"}
    assert Read.reads - reads <= 2 * 300  # whether it is there, and what it is
    assert len(claims) <= 3 * 300


def test_a_rule_claims_what_no_later_rule_matches():
    """Against one pass from the first rule to the last, on random rules."""
    chance = Random(0)
    layers = many_layers(40)
    tied = [Layer(f"tied.{i}", f"tied.{i}", layers[i].module, layers[i].prunable) for i in range(9)]
    layers = (*layers, *tied)
    report = Diagnostics()
    for _ in range(60):
        rules = []
        for _ in range(chance.randrange(1, 8)):
            one = chance.choice(['"blocks.{}"', '"**.conv{}"', "first {} Conv2d", "last {} Conv2d"])
            one = one.format(chance.randrange(1, 4))
            other = chance.choice(["", f' except "tied.{chance.randrange(9)}"', ', "tied.*"'])
            rules.append(f"prune {one}{other} to 50%" if chance.random() < 0.8 else f"keep {one}")
        recipe = loads("language 1\n" + "\n".join(rules) + f"\n{MIX}\n{TRAIN}")
        selection = Selection(layers, "Net", report)
        wanted, effective = {}, set()
        for index, rule in enumerate(recipe.rules):
            for layer in selection.select(rule.selector):
                wanted |= dict.fromkeys(layer.weights, index)
        found = Diagnostics()
        assert claim_layers(recipe.rules, selection, found) == wanted
        effective = set(wanted.values())
        without = {i for i in range(len(rules)) if i not in effective}
        reported = [d for d in (*recipe.warnings, *found.found) if d.code == "W303"]
        assert sorted(d.span.line - 2 for d in reported) == sorted(without)


def test_the_letters_that_a_regular_expression_contains_are_in_every_match():
    chance = Random(1)
    pieces = r"a b . \. [ab] (a) (ab)? a* b+ a{2} b? \w \x61 a|b".split()
    names = ["".join(chance.choices("ab.", k=chance.randrange(7))) for _ in range(300)]
    lengths = 0
    for _ in range(500):
        pattern = "".join(chance.choices(pieces, k=chance.randrange(1, 6)))
        literals = Regex(pattern).literals
        lengths += sum(map(len, literals))
        matched = [name for name in names if re.fullmatch(pattern, name)]
        assert all(literal in name for name in matched for literal in literals), pattern
    assert lengths > 200


def test_a_thousand_rules_for_no_layer_look_for_the_nearest_a_few_times(monkeypatch):
    calls = counting(monkeypatch, Selection, "_near_path")
    _, found = resolve("\n".join(f'prune "layer1.{i}.conv1x" to 50%' for i in range(2, 1000)))
    assert {d.code for d in found} == {"E301"} and len(found) == 100
    assert len(calls) == 20
