"""Result files -> leaderboards and plots; source maps -> pictures. It depends on the core, the core
not on it.

A leaderboard takes five steps, a file each: ``samples`` (a json line for each answer -> a frame),
``runs`` (a results file and its frames), ``table`` (all runs -> one tidy frame, a row for each model,
method, setting and benchmark; ``compare`` pairs a run with its baseline), ``layout`` (the tidy frame
-> tables of texts) and ``render`` (a template for each format).
"""
