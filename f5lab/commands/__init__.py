"""The subcommands of the command line, in groups; `f5lab.cli` puts them together."""
