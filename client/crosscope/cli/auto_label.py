"""`crosscope label auto`: a job that has a model label latents."""

from typing import Any

import click

from crosscope.cli.options import Options, latent_ids, with_version
from crosscope.cli.output import print_json, print_text

_VERDICTS = ("supported", "weak", "contradicted", "too_few", "not_judged", "any")


@click.command()
@click.argument("crosscoder")
@click.option("--endpoint", metavar="URL", help="Where a model answers in OpenAI's format: http://127.0.0.1:8000/v1.")
@click.option("--model", help="Name of the model there.")
@click.option("--key", metavar="VARIABLE", help="Variable of the job worker that holds the key; it ends in _API_KEY.")
@click.option("--chat", is_flag=True, help="Let the pair's own chat model label, in the place of an endpoint.")
@click.option("--ids", metavar="IDS", help="Label these latents: 7 or 3,5,9.")
@click.option("--specific-to", type=click.Choice(["chat", "base", "each", "any"]), help="Only such latents [chat].")
@click.option("--verdict", type=click.Choice(_VERDICTS), help="Only latents of this verdict [supported].")
@click.option("--order-by", metavar="COLUMN", help="Take them in this order [-num_active].")
@click.option("--limit", type=click.IntRange(min=1), help="At most this many latents [100].")
@click.option("--requests", type=click.IntRange(min=1), help="Make at most this many requests [10000].")
@click.option("--tokens", type=click.IntRange(min=1), help="Spend at most this many tokens [5000000].")
@click.option("--check", is_flag=True, help="Only say what it takes at most; queue nothing.")
@click.option("--watch", "follow", is_flag=True, help="Follow the job until it ends.")
@with_version
def auto(options: Options, crosscoder: str, check: bool, follow: bool, **own: Any) -> None:
    """Queue a job that has a model label latents of CROSSCODER, and scores each label.

    \b
    crosscope label auto demo --endpoint http://127.0.0.1:8000/v1 --model qwen3 --limit 20 --check
    """  # noqa: D301 (click wants the backspace itself)
    recipe = _recipe(crosscoder, options.version_id, own)
    with options.client() as client:
        if check:
            from crosscope.cli.jobs import show_plan

            show_plan(options, client.jobs.plan(recipe))
            return
        job = client.jobs.submit(recipe)
        for warning in job.warnings:
            click.echo(f"warning: {warning}".encode("utf-8", "backslashreplace").decode(), err=True)
        if follow:
            from crosscope.cli.jobs import follow_job

            follow_job(options, job)
        elif options.as_json:
            print_json(job.info)
        else:
            print_text(f"{job.id}\nfollow it with: crosscope watch {job.id}")


def _recipe(crosscoder: str, version_id: str | None, own: dict[str, Any]) -> dict[str, Any]:
    """The recipe that the options say."""
    by_endpoint = {name: own[option] for name, option in (("address", "endpoint"), ("model", "model"), ("key", "key"))}
    given = {name: value for name, value in by_endpoint.items() if value is not None}
    if own["chat"] == bool(given) or (not own["chat"] and not {"address", "model"} <= given.keys()):
        raise click.UsageError("say who labels: --endpoint with --model, or --chat")
    recipe: dict[str, Any] = {"kind": "label", "name": crosscoder}
    recipe["explainer"] = {"by": "chat"} if own["chat"] else {"by": "endpoint", **given}
    latents: dict[str, Any] = {name: own[name] for name in ("order_by", "limit") if own[name] is not None}
    if own["specific_to"] is not None:
        latents["specific_to"] = None if own["specific_to"] == "any" else own["specific_to"]
    if own["verdict"] is not None:
        latents["verdicts"] = [] if own["verdict"] == "any" else [own["verdict"]]
    if own["ids"] is not None:
        if latents:
            raise click.UsageError("--ids names each latent: leave the other choices out")
        latents["ids"] = latent_ids([own["ids"]], "--ids")
    budget = {name: own[name] for name in ("requests", "tokens") if own[name] is not None}
    parts = {"latents": latents, "budget": budget, "version": version_id}
    return recipe | {name: part for name, part in parts.items() if part}
