"""lmms-eval task files; `sttm_lmms.tasks.__path__` is what `--include_path` wants."""
