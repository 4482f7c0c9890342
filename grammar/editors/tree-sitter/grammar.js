// The grammar of .prune recipes for tree-sitter, rule by rule that of ../../prune.lark.
//
// Not built: `tree-sitter generate` writes src/, which is not in the repository.
// tests/editors/test_tree_sitter.py parses every recipe with these rules.

/** One or more, separated by commas; `trailing`: a comma may end them. */
const listed = (rule, trailing = false) =>
  seq(rule, repeat(seq(",", rule)), ...(trailing ? [optional(",")] : []));

const braces = (...rules) => seq("{", ...rules, "}");

module.exports = grammar({
  name: "prune",
  extras: ($) => [/[ \t\r\n]+/, $.comment],
  word: ($) => $.name,

  rules: {
    source_file: ($) => seq($.language, optional($.extends), repeat($._item)),

    language: ($) => seq("language", $.number),
    extends: ($) => seq("extends", $.string),

    _item: ($) =>
      choice(
        $.recipe, $.model, $.data, $.pruning, $.train, $.let, $.layers, $.prune, $.keep, $.mix,
        $.expect
      ),

    recipe: ($) => seq("recipe", field("name", $.name), $.settings),
    model: ($) => seq("model", optional(field("name", choice($.name, $.string))), optional($.settings)),
    data: ($) => seq("data", optional(field("name", $.name)), optional($.settings)),
    pruning: ($) => seq("pruning", $.settings),
    train: ($) => seq("train", $.settings),
    expect: ($) => seq("expect", braces(repeat($.condition))),

    settings: ($) => braces(repeat($.setting)),
    setting: ($) => seq(field("name", $.name), "=", field("value", $._value)),

    let: ($) => seq("let", field("name", $.name), "=", field("value", $._value)),
    layers: ($) => seq("layers", field("name", $.name), "=", $.selector),

    prune: ($) => seq("prune", $.selector, "to", field("target", $._value), optional($.settings)),
    keep: ($) => seq("keep", $.selector),

    selector: ($) => seq($._union, optional(seq("except", $._union))),
    _union: ($) => listed($._restricted),
    _restricted: ($) => choice($._picked, $.inside, $.having),
    inside: ($) => prec.left(1, seq($._restricted, "in", $.string)),
    having: ($) => prec.left(1, seq($._restricted, "where", $._conditions)),
    _picked: ($) => choice($._set, $.first, $.last),
    first: ($) => seq("first", optional($.number), $._set),
    last: ($) => seq("last", optional($.number), $._set),
    _set: ($) => choice($.type, $.string, $.regex, $.name),

    _conditions: ($) => prec.left(seq($.condition, repeat(seq("and", $.condition)))),
    condition: ($) => seq(field("name", $.name), $.compare, field("value", $._value)),

    mix: ($) => seq("mix", braces(repeat($._mix_item))),
    _mix_item: ($) => choice($.path, $.update, $.private, $.loss, $.deploy),
    path: ($) =>
      seq(
        "path", field("name", $.name), "=", field("view", choice($.name, $.call)),
        optional($.settings)
      ),
    update: ($) =>
      seq(
        "update", listed(field("part", $.name)), "by", $.share, repeat(seq("+", $.share)),
        optional($.from), optional($.until)
      ),
    share: ($) => seq(optional(seq($._scalar, "*")), field("path", $.name)),
    private: ($) => seq("private", $.selector, optional($.settings)),
    loss: ($) =>
      seq(
        "loss", optional(seq($._scalar, "*")), field("term", choice($.call, $.own)),
        optional($.from), optional($.until)
      ),
    deploy: ($) => seq("deploy", field("path", $.name)),

    from: ($) => seq("from", $._moment),
    until: ($) => seq("until", $._moment),
    own: ($) => seq("model", "(", optional(listed($._argument, true)), ")"),
    _scalar: ($) => choice($.number, $.negative_number, $.name),
    negative_number: ($) => seq("-", $.number),
    _moment: ($) => choice($.time, $.name),

    _value: ($) => choice($._sum, $.range),
    range: ($) => seq($._sum, "..", $._sum),
    _sum: ($) => choice($._product, $.sum),
    sum: ($) => prec.left(1, seq($._sum, choice("+", "-"), $._product)),
    _product: ($) => choice($._unary, $.product),
    product: ($) => prec.left(2, seq($._product, choice("*", "/"), $._unary)),
    _unary: ($) => choice($._atom, $.negative),
    negative: ($) => prec(3, seq("-", $._unary)),
    _atom: ($) =>
      choice(
        $.number, $.percent, $.time, $.ratio, $.string, $.constant, $.name, $.call, $.list,
        $.parenthesized
      ),
    constant: () => choice("true", "false", "none"),
    list: ($) => seq("[", optional(listed($._value, true)), "]"),
    parenthesized: ($) => seq("(", $._value, ")"),

    call: ($) => seq(field("word", $.name), "(", optional(listed($._argument, true)), ")"),
    _argument: ($) => choice($._value, $.keyword_argument),
    keyword_argument: ($) => seq(field("name", $.name), "=", field("value", $._value)),

    name: () => /[a-z_][a-z0-9_]*/,
    type: () => /[A-Z][A-Za-z0-9_]*/,
    string: () => /"[^"\n]*"/,
    regex: () => token(prec(1, /re"[^"\n]*"/)),
    number: () => /[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?/,
    percent: () => token(prec(1, /[0-9]+(\.[0-9]+)?%/)),
    time: () =>
      token(prec(2, /[0-9]+(\.[0-9]+)?([ \t]*(epochs|epoch|ep|steps|step)|%[ \t]*run)/)),
    ratio: () => token(prec(1, /[0-9]+:[0-9]+/)),
    compare: () => choice("==", "!=", "<=", ">=", "<", ">"),
    comment: () => /#[^\n]*/,
  },
});
