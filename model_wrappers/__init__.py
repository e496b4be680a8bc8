"""lmms-eval classes (thin)."""
