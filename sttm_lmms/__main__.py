"""``python -m sttm_lmms`` and ``accelerate launch -m sttm_lmms eval ...``."""

from sttm_lmms.cli import main

if __name__ == "__main__":
    main()
