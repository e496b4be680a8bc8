"""The feature store that belongs to a checkpoint and its settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sttm_lmms.families import layout_of
from sttm_lmms.families.checkpoint import resolve_checkpoint
from sttm_lmms.video import VideoSettings
from sttm_lmms.video.features import FeatureStore, feature_key, stored_form


def open_store(
    root: str | Path,
    checkpoint: str,
    settings: VideoSettings,
    dtype: str,
    form: str | None = None,
    *,
    revision: str | None = None,
) -> FeatureStore:
    """The store of a checkpoint's features below ``root``, a data set's folder in the published
    layout.

    Args:
        root: the folder that holds (or will hold) ``preprocess_data``.
        checkpoint: hub id or local folder, as for ``load_pretrained``; its last part names the
            store's folder.
        settings: how frames are sampled.
        dtype: what the vision tower computes in, such as ``"bfloat16"``.
        revision: branch, tag or commit on the hub.
        form: one of ``sttm_lmms.video.features.FORMS``; None takes the one that is stored there, or
            ``"full"``.

    Raises:
        CheckpointError: the checkpoint cannot be had.
    """
    folder = resolve_checkpoint(checkpoint, revision=revision)
    if settings.sampling == layout_of(folder)[0].model_sampling:
        settings = replace(settings, sampling="model")  # the same frames under two names
    name = Path(checkpoint).name
    store = FeatureStore(root, name, feature_key(folder, settings, dtype, form or "full"))
    stored = None if form else stored_form(store.folder)
    return FeatureStore(root, name, feature_key(folder, settings, dtype, stored)) if stored else store
