; Words of the grammar
[
  "language" "extends" "recipe" "let" "layers" "model" "data" "pruning" "prune" "keep" "mix"
  "path" "update" "private" "loss" "deploy" "train" "expect"
] @keyword

[ "to" "by" "from" "until" "except" "in" "where" "and" "first" "last" ] @keyword.operator

(constant) @constant.builtin
(comment) @comment
(string) @string
(regex) @string.regexp
(number) @number
(percent) @number
(ratio) @number
(time) @number
(type) @type
(compare) @operator
[ "=" ".." "+" "-" "*" "/" ] @operator
[ "{" "}" "(" ")" "[" "]" ] @punctuation.bracket
"," @punctuation.delimiter

; Names, by what they name
(name) @variable
(setting name: (name) @property)
(keyword_argument name: (name) @property)
(condition name: (name) @property)
(call word: (name) @function)
(own "model" @function)
(path view: (name) @function)
(let name: (name) @constant)
(layers name: (name) @type.definition)
(path name: (name) @label)
