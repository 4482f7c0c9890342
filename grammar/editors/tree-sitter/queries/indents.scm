[ (settings) (mix) (expect) (list) (call) ] @indent.begin
[ "}" "]" ")" ] @indent.branch @indent.end
