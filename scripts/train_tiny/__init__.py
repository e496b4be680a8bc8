"""How the checkpoints in ``sttm_lmms/checkpoints`` are made and measured; see README.md here."""
