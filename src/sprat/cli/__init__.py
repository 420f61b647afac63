"""The command line: one file a verb. Nothing but this folder prints."""
