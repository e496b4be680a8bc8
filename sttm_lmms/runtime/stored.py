"""The feature store that belongs to a checkpoint and its settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from sttm_lmms.families import layout_of
from sttm_lmms.families.checkpoint import resolve_checkpoint
from sttm_lmms.video import VideoSettings
from sttm_lmms.video.features import FeatureStore
from sttm_lmms.video.fingerprint import feature_key


def open_store(
    root: str | Path,
    checkpoint: str,
    settings: VideoSettings,
    dtype: str,
    form: str | None = None,
    *,
    revision: str | None = None,
) -> FeatureStore:
    """The store of a checkpoint's features below ``root``, a data set's folder in the published layout.

    Args:
        root: the folder that holds (or will hold) ``preprocess_data``.
        checkpoint: hub id or local folder, as for ``load_pretrained``; its last part names the store's folder.
        settings: how frames are sampled.
        dtype: what the vision tower computes in, such as ``"bfloat16"``.
        revision: branch, tag or commit on the hub.
        form: one of ``sttm_lmms.video.feature_forms.FORMS``; None takes the one that is stored there, or ``"full"``.

    Raises:
        CheckpointError: the checkpoint cannot be had.
    """
    folder = resolve_checkpoint(checkpoint, revision=revision)
    if settings.sampling == layout_of(folder)[0].model_sampling:
        settings = replace(settings, sampling="model")  # the same frames under two names
    name = Path(checkpoint).name
    store = FeatureStore(root, name, feature_key(folder, settings, dtype, form or "full"))
    stored = None if form else _stored_form(store.folder)
    if stored and stored != "full":
        store = FeatureStore(root, name, feature_key(folder, settings, dtype, stored))
    return store


def _stored_form(folder: Path) -> str | None:
    """The form of the first features in a store; None if there are none of ours."""
    record = next(folder.glob("metadata/*.json"), None)
    if record is None:
        return None
    try:
        return str(json.loads(record.read_text(encoding="utf-8"))["key"]["form"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # broken: the store says so, with the file's name, when it is asked for features
