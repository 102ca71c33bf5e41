"""Everything that runs inside a child process. Nothing here knows that there is a database."""
