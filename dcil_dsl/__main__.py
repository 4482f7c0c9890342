"""`python -m dcil_dsl` is `dcil`."""

from dcil_dsl.cli.commands import main

if __name__ == "__main__":
    main()
