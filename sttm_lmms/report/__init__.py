"""Result files -> leaderboards and plots; source maps -> pictures. It depends on the core, the core
not on it."""
