"""Errors that stop `train` or `prepare` before anything is written: machine, config, data; one line each."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Lfm2Config

from tests.conftest import SMOKE
from tests.data.conftest import conversation, write_jsonl
from tests.whole import assert_one_line
from tometune.models.source import tiny_folder

pytestmark = pytest.mark.whole

MIXING = ("model.id=./mixing", "model.weights=pretrained", "lora=none")
SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
FILES = ("model=tiny", "eval=pydocs", "tracking=none", "data=files_100k", "data.rows=10", "paths.cache=bad-cache")
POOL = ("data=files_200k", "data.base.rows=12", "data.pool.path=pool.jsonl")


@pytest.fixture(scope="module")
def mixing(place, tmp_path_factory):
    """A small model whose first layer is a convolution, in a folder of that name."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder(tmp_path_factory.mktemp("tiny")))
    kinds = ["conv", "full_attention"]
    config = Lfm2Config(vocab_size=len(tokenizer), layer_types=kinds, num_hidden_layers=2, **SIZES)
    AutoModelForCausalLM.from_config(config).save_pretrained(place.folder / "mixing")
    tokenizer.save_pretrained(place.folder / "mixing")


# The wording of other messages is checked in tests/golden/errors.txt and tests/data.
@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([], r"^model=llama32_3b: .*need an NVIDIA GPU.* tometune train \+experiment=quickstart, or add model=smollm2"),
        (
            [*SMOKE, "model=llama32_3b", "model.id=someone/thing", "model.quantization=none"],
            r"^model\.id=someone/thing: the model hub cannot be reached.* tometune train \+experiment=quick",
        ),
        ([*SMOKE, "model.id=./none", "model.weights=pretrained"], r"^model\.id=\./none: "),
        ([*SMOKE, "trainer.optim=lion_8bit"], r"^trainer\.optim=lion_8bit: needs bitsandbytes; "),
        ([*SMOKE, "model.attn_implementation=flash_attention_2"], r"^model\.attn_.* needs the package flash"),
    ],
)
def test_what_is_missing_is_one_line_and_no_folder_is_made(place, overrides, says):
    done = place.verb("train", *overrides, "paths.outputs=refused")
    assert done.returncode == 2
    assert_one_line(done, says)
    assert not (place.folder / "refused").exists()


@pytest.mark.parametrize(
    ("overrides", "says", "not_yet"),
    [
        (["lora.target_modules=[q_prj]"], "no layer is named q_prj; did you mean q_proj", "base summarisation"),
        (
            ["+eval/task@eval.tasks.mine=jsonl", "eval.tasks.mine.path=mine.jsonl", "trainer.max_length=77"],
            "mine.jsonl, line 1: is not an object {…}; fix or delete this line",
            "tokenised",
        ),
        (
            [*MIXING, "trainer.packing=true", "trainer.conversations_per_step=null"],
            "trainer.packing=true: layers of lfm2 without attention mix the conversations of a pack; set trainer.pack",
            "base summarisation",
        ),
    ],
)
def test_what_is_wrong_is_reported_before_slow_work(place, mixing, overrides, says, not_yet):
    write_jsonl(place.folder / "mine.jsonl", [[1]])
    status, stderr = place.train(*SMOKE, *overrides, "paths.outputs=refused")
    assert status == 2
    assert says in stderr.splitlines()[-1]
    assert not_yet not in stderr
    assert not (place.folder / "refused").exists()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["data.base.path=broken.jsonl", "data.bad_rows=stop"],
            r"^data\.base: 1 of 12 rows cannot be read \(not_json 1\); .* broken\.jsonl, line 7: is not JSON .*fix or",
        ),
        (["trainer.max_length=4", "data.base.path=good.jsonl"], r"^trainer\.max_length=4: the chat template alone"),
        ([*POOL, "data.rows=30", "data.base.path=good.jsonl"], r"^data\.pool: 3 usable rows of 7 .*data\.rows=30 nee"),
    ],
)
def test_bad_data_is_one_line_and_nothing_is_made(place, overrides, says):
    good = [conversation(number) for number in range(12)]
    write_jsonl(place.folder / "pool.jsonl", good[:4] + [conversation(n) for n in range(100, 103)])
    lines = write_jsonl(place.folder / "good.jsonl", good).read_text().splitlines()
    (place.folder / "broken.jsonl").write_text("\n".join([*lines[:6], lines[6][:20], *lines[7:]]))
    done = place.verb("prepare", *FILES, *overrides, "paths.outputs=bad")
    assert done.returncode == 2, done.stderr
    assert_one_line(done, says)
    assert done.stdout == ""
    assert not (place.folder / "bad").exists()
    assert not list((place.folder / "bad-cache").glob("*/.*")), "no half-made folder in the cache"
