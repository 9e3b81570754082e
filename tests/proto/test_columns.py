"""The columns of tables: what lies on disk and on the wire stays as it is, and every column says what it is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from crosscope_proto import columns as tables
from crosscope_proto.column import Column, arrow_schema, markdown, with_error
from crosscope_proto.columns import ALL_LATENT_COLUMNS
from crosscope_proto.v1 import latents_pb2

ON_DISK = {
    "LATENT_COLUMNS": """
        id:uint32 latent_class:string part:string norm_base:float norm_chat:float rel_norm:float cosine:float
        num_active:uint64 num_texts:float frequency:float frequency_se:float mean:float mean_se:float max:float
        repeat_share:float beta_act_base:float beta_act_base_se:float beta_act_chat:float beta_act_chat_se:float
        beta_act_no_bias_base:float beta_act_no_bias_base_se:float beta_act_no_bias_chat:float
        beta_act_no_bias_chat_se:float beta_rec_base:float beta_rec_base_se:float beta_rec_chat:float
        beta_rec_chat_se:float beta_err_base:float beta_err_base_se:float beta_err_chat:float beta_err_chat_se:float
        nu_err:float nu_err_se:float nu_rec:float nu_rec_se:float mirror_beta_act_base:float
        mirror_beta_act_base_se:float mirror_beta_act_chat:float mirror_beta_act_chat_se:float
        mirror_beta_act_no_bias_base:float mirror_beta_act_no_bias_base_se:float mirror_beta_act_no_bias_chat:float
        mirror_beta_act_no_bias_chat_se:float mirror_beta_rec_base:float mirror_beta_rec_base_se:float
        mirror_beta_rec_chat:float mirror_beta_rec_chat_se:float mirror_beta_err_base:float
        mirror_beta_err_base_se:float mirror_beta_err_chat:float mirror_beta_err_chat_se:float mirror_nu_err:float
        mirror_nu_err_se:float mirror_nu_rec:float mirror_nu_rec_se:float beta_ratio:float beta_ratio_se:float
        base_uselessness:float base_uselessness_ls:float base_uselessness_single:float
        ablation_gap_all:float ablation_gap_all_se:float ablation_gap_first9:float ablation_gap_first9_se:float
        ablation_gap_template:float ablation_gap_template_se:float transplant_gap_all:float
        transplant_gap_all_se:float transplant_gap_first9:float transplant_gap_first9_se:float
        transplant_gap_template:float transplant_gap_template_se:float ablation_moved_all:float
        ablation_moved_all_se:float ablation_moved_first9:float ablation_moved_first9_se:float
        ablation_moved_template:float ablation_moved_template_se:float causal_texts:float causal_equivalence:float
        causal_equivalence_tokens:float
        template_share:float
        role_shares:list<float> dataset_shares:list<float> histogram:list<uint32> top_tokens:list<string>
        peak_context:list<string> logit_tokens_base:list<string> logit_tokens_chat:list<string> neighbours:list<uint32>
        neighbour_cosines:list<float> coactive:list<uint32> coactive_indices:list<float>
    """,
    "SEQUENCE_COLUMNS": "id:uint32 dataset:string token_ids:list<uint32> pieces:list<string> roles:list<uint8>",
    "EXAMPLE_COLUMNS": """
        latent:uint32 dataset:string group:string quantile:uint8 rank:uint32 sequence:uint32 max:float
        positions:list<uint16> values:list<float> repeats:uint32 group_low:float group_high:float group_texts:uint32
    """,
    "METRIC_COLUMNS": "step:uint64 name:string value:float",
    "BEHAVIOUR_COLUMNS": """
        behaviour:string place:string latent:uint32 threshold:float recall:float false_rate:float num_positive:uint32
        num_negative:uint32
    """,
}


@pytest.mark.parametrize("name", ON_DISK)
def test_schemas_on_disk_stay(name: str) -> None:
    """Published versions hold these columns in this order: a new one comes with `absent`, and none goes."""
    fields = [f"{field.name}:{field.type}".replace("item: ", "") for field in arrow_schema(getattr(tables, name))]
    assert fields == ON_DISK[name].split()


def test_every_field_of_the_message_is_a_column() -> None:
    """And every column lies where it says: neither side has something that the other lacks."""
    own = [column.path for column in ALL_LATENT_COLUMNS if column.path != ("more", column.name)]
    assert sorted(own) == sorted(leaves(latents_pb2.Latent.DESCRIPTOR))


def leaves(message: Descriptor) -> list[tuple[str, ...]]:
    """Paths of all fields that hold no message, those of inner messages included."""
    found: list[tuple[str, ...]] = []
    for field in message.fields:
        if field.name in ("more", "label", "is_starred"):  # people write the last two, no analysis
            continue
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            found += [(field.name, *rest) for rest in leaves(field.message_type)]
        else:
            found.append((field.name,))
    return found


@pytest.mark.parametrize("column", ALL_LATENT_COLUMNS, ids=lambda column: column.name)
def test_a_column_says_what_it_is(column: Column) -> None:
    assert re.fullmatch(r"\S.*[^.]\.", column.meaning)
    assert column.label
    if column.source:
        math = Path(__file__).parents[2] / "docs" / "math.md"
        assert f"\n## {column.source.removeprefix('math ')} " in math.read_text("utf-8")


def test_heads_and_labels_tell_columns_apart() -> None:
    for names in (
        [column.short for column in ALL_LATENT_COLUMNS if column.short],
        [c.label for c in ALL_LATENT_COLUMNS],
    ):
        assert len(set(names)) == len(names)


def test_a_standard_error_is_like_its_column() -> None:
    column = Column(
        "x", "float32", "What it says.", label="x of it", short="ξ x", unit="tokens", absent=2.0, wire="a.b"
    )
    value, error = with_error(column)
    assert (value.name, value.path) == ("x", ("a", "b", "value"))
    assert (error.name, error.path, error.error_of) == ("x_se", ("a", "b", "se"), "x")
    assert (error.short, error.unit, error.absent) == ("± x", "tokens", 2.0)
    assert error.meaning.startswith("Standard error of the x of it,")


def test_the_table_of_the_docs() -> None:
    columns = (
        Column("a", "float32", "One | two.", unit="tokens", low=0, high=1, source="math §4", undefined="at 0"),
        Column("b", "string", "Text.", categories=("x", "y")),
    )
    assert markdown(columns) == (
        "| column | meaning | unit | range | source |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| `a` | One \\| two. Undefined at 0. | tokens | 0 to 1 | math §4 |\n"
        "| `b` | Text. | – | `x`, `y` | – |\n"
    )
    done = subprocess.run([sys.executable, "-m", "crosscope_proto.columns"], capture_output=True, text=True, check=True)
    assert done.stdout == markdown(ALL_LATENT_COLUMNS)
