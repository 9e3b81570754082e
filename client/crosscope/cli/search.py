"""`crosscope search`: latents by what stands in their labels, notes, peaks, raised tokens and examples."""

import click

from crosscope import SearchPlace
from crosscope._search import SEARCH_HEADERS, search_rows
from crosscope.cli.options import Options, with_version
from crosscope.cli.output import print_json, print_table


@click.command()
@click.argument("crosscoder")
@click.argument("text")
@click.option("--regex", is_flag=True, help="TEXT is a regular expression of RE2.")
@click.option("--match-case", is_flag=True, help="Upper and lower case differ, and accents too.")
@click.option("--in", "places", multiple=True, type=click.Choice(list(SearchPlace)), help="Look only here.")
@click.option("--where", multiple=True, metavar="CONDITION", help='For instance "nu_err < 0.2"; all must hold.')
@click.option("--order-by", default="", metavar="COLUMN", help="A column instead of the best matches first.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most this many.")
@with_version
def search(
    options: Options,
    crosscoder: str,
    text: str,
    regex: bool,
    match_case: bool,
    places: tuple[str, ...],
    where: tuple[str, ...],
    order_by: str,
    limit: int,
) -> None:
    """Find latents of CROSSCODER by TEXT; those that fire on it come first.

    \b
    crosscope search demo refus --in example --where "latent_class = chat_only"
    """  # noqa: D301 (click wants the backspace itself)
    with options.client() as client:
        whole = options.crosscoder(client, crosscoder)
        how = {"regex": regex, "match_case": match_case, "order_by": order_by, "limit": limit}
        found = whole.search(text, places, list(where), **how)
    if options.as_json:
        named = ("num_matching", "counts", "num_text_matches", "num_texts", "building", "notes")
        print_json({name: getattr(found, name) for name in named} | {"results": list(found)})
        return
    rows = [row for each in found for row in search_rows(each)]
    print_table(SEARCH_HEADERS, rows, rest=found.num_matching - len(found))
    for remark in found.remarks:
        click.echo(remark, err=True)
