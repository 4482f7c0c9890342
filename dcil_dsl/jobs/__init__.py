"""What a verb does, as functions: prepare, train, inspect, expect."""
