"""The long-lived parts of a supervisor, one a file, each with the same contract: `start()` returns when it runs,
`stop()` may be called twice or before start. List the folder and you have listed the loops."""
