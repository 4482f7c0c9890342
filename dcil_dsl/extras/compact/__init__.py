"""Networks without the filters, channels and heads that pruning left dead."""
