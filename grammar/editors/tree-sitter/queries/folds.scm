[ (recipe) (model) (data) (pruning) (train) (expect) (prune) (mix) (path) (private) ] @fold
