"""One page, or one table, about runs: `dcil report`, `dcil runs`, `dcil compare`, `dcil sweep`."""
