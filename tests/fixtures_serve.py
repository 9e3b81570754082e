"""A home with a tiny pair and random crosscoders of it, as publishing writes them."""

from pathlib import Path
from typing import Any

import torch

from crosscope_proto.artefacts import CURRENT, CrosscoderManifest, crosscoder_folder, version_folder
from crosscope_proto.specs import PairSpec
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.keep import AboveThreshold, StoredKeep
from crosscope_worker.dictionary.streams import BOTH, Streams
from crosscope_worker.models.fingerprints import pair_hashes
from crosscope_worker.models.places import resolve_pair

LAYER, LATENTS, VERSION = 2, 48, "v1"


def random_crosscoder(
    seed: int = 0, num_latents: int = LATENTS, threshold: float = 60.0, streams: Streams = BOTH
) -> Crosscoder:
    generator = torch.Generator().manual_seed(seed)
    W_enc, W_dec = (
        torch.randn(64, num_latents, generator=generator),
        torch.randn(num_latents, 64, generator=generator),
    )
    if streams is not BOTH:
        columns = streams.columns((32, 32))
        W_enc, W_dec = streams.place_encoder(W_enc[columns].T).T.contiguous(), streams.place_decoder(W_dec[:, columns])
    return Crosscoder(
        W_enc=W_enc,
        b_enc=torch.zeros(num_latents),
        W_dec=W_dec,
        b_dec=torch.zeros(64),
        d_model=(32, 32),
        variant="batch_topk",
        keep=AboveThreshold(threshold),
        input_scale=(0.5, 2.0),
        streams=streams,
    )


def write_version(home: Path, name: str, crosscoder: Crosscoder, version_id: str = VERSION, **fields: Any) -> Path:
    """Writes a crosscoder of the pair "tiny" as publishing does."""
    pair = resolve_pair(PairSpec(name="tiny"), home)
    stored = StoredKeep.of(crosscoder.keep, crosscoder.num_latents)
    manifest = CrosscoderManifest(
        name=name,
        version_id=version_id,
        pair=pair,
        layer=LAYER,
        d_model=crosscoder.d_model,
        num_latents=crosscoder.num_latents,
        variant=crosscoder.variant,
        reads=crosscoder.streams.name,
        code_normalisation=crosscoder.code_normalisation,
        threshold=stored.threshold,
        token_k=stored.token_k,
        input_scale=crosscoder.input_scale,
        hashes=pair_hashes(pair),
        **{"recipe": {}} | fields,
    )
    folder = Path(version_folder(home, name, version_id))
    folder.mkdir(parents=True)
    crosscoder.save(folder, manifest)
    (Path(crosscoder_folder(home, name)) / CURRENT).write_text(f"{version_id}\n")
    return folder
