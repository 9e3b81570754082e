"""Small random crosscoders, and manifests for them."""

import torch

from crosscope_proto.artefacts import CrosscoderManifest, PairManifest
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.keep import StoredKeep


def make_crosscoder(d_model=(3, 5), latents=11, seed=0, **options) -> Crosscoder:
    generator = torch.Generator().manual_seed(seed)
    both = sum(d_model)
    return Crosscoder(
        W_enc=torch.randn(latents, both, generator=generator).T,
        b_enc=torch.randn(latents, generator=generator),
        W_dec=torch.randn(latents, both, generator=generator),
        b_dec=torch.randn(both, generator=generator),
        d_model=d_model,
        variant="l1",
        **options,
    )


def make_manifest(crosscoder: Crosscoder) -> CrosscoderManifest:
    stored = StoredKeep.of(crosscoder.keep, crosscoder.num_latents)
    return CrosscoderManifest(
        name="toy",
        version_id="v1",
        pair=PairManifest(name="pair", base="/base", chat="/chat", tokenizer="/chat"),
        layer=1,
        d_model=crosscoder.d_model,
        num_latents=crosscoder.num_latents,
        variant=crosscoder.variant,
        code_normalisation=crosscoder.code_normalisation,
        threshold=stored.threshold,
        token_k=stored.token_k,
        notes=crosscoder.notes,
        reads=crosscoder.streams.name,
        input_scale=crosscoder.input_scale,
        recipe={},
    )
