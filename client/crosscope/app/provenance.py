"""Where a latent comes from: the version, what it was trained on, its weights' hash, and the job that made it."""

from datetime import UTC, datetime
from typing import Any

import streamlit as st

from crosscope import CrosscoderInfo
from crosscope.app import session, text
from crosscope.app.table_view import Column, table_view
from crosscope_proto.artefacts import WEIGHTS

NOT_SAID = "not said"


def panel(info: CrosscoderInfo) -> None:
    """Draws the facts, and links to the job and to the whole manifest."""
    st.header("Where it comes from")
    manifest = session.manifest(info)
    facts = facts_of(info, manifest)
    columns = [Column("what", list(facts), is_text=True), Column("is", list(facts.values()), is_text=True)]
    table_view("provenance", "Where it comes from", columns)
    if job := manifest.get("job"):
        session.link("jobs", "The job that made it, with its recipe", crosscoder=info.name, job=job)
    session.link("overview", "The whole manifest, on the overview", crosscoder=info.name)


def facts_of(info: CrosscoderInfo, manifest: dict[str, Any]) -> dict[str, str]:
    """The facts by what they are, as the version's manifest has them."""
    recipe = manifest.get("recipe") or {}
    made = datetime.fromtimestamp(info.created_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    training = f"{text.count(info.training_tokens)} tokens" if info.training_tokens else "trained elsewhere"
    software = manifest.get("software") or {}
    return {
        "version": info.version_id,
        "published": made,
        "job": str(manifest.get("job") or NOT_SAID),
        "recipe": ", ".join(
            str(each) for each in (recipe.get("kind"), recipe.get("name"), f"dictionary {info.variant}") if each
        ),
        "pair": f"{info.pair}, layer {info.layer}",
        "data": f"{', '.join(info.datasets)}; {training}, {text.count(info.analysis_tokens)} analysed",
        "weights": str((manifest.get("hashes") or {}).get(WEIGHTS, NOT_SAID)),
        "software": ", ".join(f"{name} {version}" for name, version in software.items()) or NOT_SAID,
    }
