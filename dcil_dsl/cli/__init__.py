"""The command line: commands, options, errors, the streams they print to."""
