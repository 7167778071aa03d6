"""The table of public datasets in docs/data.md: each line reads two rows of that dataset's shape."""

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from tometune.config.command_line import read_command_line
from tometune.config.root import CONFIG_NAME, conf_dir, register, typed
from tometune.data.formats import Reader

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
LINE = re.compile(r"^\| (?P<name>[\w.-]+/[\w.-]+) \| `(?P<line>[^`]+)` \| (?P<unread>[^|]*) \|", re.MULTILINE)

SHAREGPT = [{"from": "human", "value": "Why do gulls cry?"}, {"from": "gpt", "value": "To warn the others."}]
CHAT = [{"role": "user", "content": "Why do gulls cry?"}, {"role": "assistant", "content": "To warn the others."}]
SYSTEM = {"from": "system", "value": "Be brief."}
WEIGHTED = [{**SYSTEM, "weight": None}, {**SHAREGPT[0], "weight": 0.0}, {**SHAREGPT[1], "weight": 1.0}]
CALLS = [
    SHAREGPT[0],
    {"from": "function_call", "value": '{"name": "gulls", "arguments": {"month": 5}}'},
    {"from": "observation", "value": '{"cries": 7}'},
    {"from": "gpt", "value": "Seven times."},
]
FUNCTION = '{"name": "gulls", "description": "Cries a month", "parameters": {"type": "object"}}'
CALL = [{"name": "gulls", "arguments": {"month": 5}}]
Q, A = "Why do gulls cry?", "To warn the others."
UA, SUA = ["user", "assistant"], ["system", "user", "assistant"]

# Two rows of each dataset's shape, in our own words, and the roles that they are read as.
SAMPLES: dict[str, tuple[list[dict[str, Any]], list[list[str]]]] = {
    "mlabonne/FineTome-100k": (
        [
            {"conversations": SHAREGPT, "source": "a", "score": 5.1},
            {"conversations": SHAREGPT, "source": "b", "score": None},
        ],
        [UA, UA],
    ),
    "arcee-ai/The-Tome": (
        [{"conversations": [SYSTEM, *SHAREGPT], "dataset": "a"}, {"conversations": SHAREGPT, "dataset": "b"}],
        [SUA, UA],
    ),
    "tatsu-lab/alpaca": (
        [
            {"instruction": Q, "input": "", "output": A, "text": f"### Instruction: {Q} ### Response: {A}"},
            {"instruction": Q, "input": "At night.", "output": A, "text": f"### Instruction: {Q} ### Response: {A}"},
        ],
        [UA, UA],
    ),
    "databricks/databricks-dolly-15k": (
        [
            {"instruction": Q, "context": "", "response": A, "category": "open_qa"},
            {"instruction": Q, "context": "Gulls live in colonies.", "response": A, "category": "closed_qa"},
        ],
        [UA, UA],
    ),
    "OpenAssistant/oasst_top1_2023-08-25": (
        [
            {"text": f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n{A}<|im_end|>\n"},
            {"text": f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n{A}<|im_end|>\n" * 2},
        ],
        [UA, UA * 2],
    ),
    "timdettmers/openassistant-guanaco": (
        [{"text": f"### Human: {Q}### Assistant: {A}"}, {"text": f"### Human: {Q}### Assistant: {A}### Human: {Q}"}],
        [UA, [*UA, "user"]],
    ),
    "HuggingFaceH4/ultrachat_200k": (
        [{"prompt": Q, "prompt_id": "1", "messages": CHAT}, {"prompt": Q, "prompt_id": "2", "messages": CHAT * 2}],
        [UA, UA * 2],
    ),
    "stingning/ultrachat": ([{"id": "0", "data": [Q, A]}, {"id": "1", "data": [Q, A, Q, A]}], [UA, UA * 2]),
    "anon8231489123/ShareGPT_Vicuna_unfiltered": (
        [{"id": "0", "conversations": SHAREGPT}, {"id": "1", "conversations": SHAREGPT * 2}],
        [UA, UA * 2],
    ),
    "teknium/OpenHermes-2.5": (
        [
            {"conversations": WEIGHTED, "source": "a", "category": None, "system_prompt": None, "views": None},
            {"conversations": SHAREGPT, "source": "b", "category": "birds", "system_prompt": "Be brief.", "views": 2.0},
        ],
        [SUA, SUA],
    ),
    "Open-Orca/OpenOrca": (
        [
            {"id": "flan.1", "system_prompt": "", "question": Q, "response": A},
            {"id": "cot.2", "system_prompt": "Be brief.", "question": Q, "response": A},
        ],
        [UA, SUA],
    ),
    "Open-Orca/SlimOrca": ([{"conversations": WEIGHTED}, {"conversations": WEIGHTED[1:]}], [SUA, UA]),
    "glaiveai/glaive-function-calling-v2": (
        [
            {"system": "SYSTEM: Be brief.", "chat": f"USER: {Q}\n\n\nASSISTANT: {A} <|endoftext|>\n\n\n"},
            {
                "system": f"SYSTEM: You may call these functions -\n{FUNCTION}",
                "chat": f"USER: {Q}\n\n\nASSISTANT: <functioncall> {{}} <|endoftext|>\n\n\n"
                f"FUNCTION RESPONSE: {{}}\n\n\nASSISTANT: {A} <|endoftext|>",
            },
        ],
        [SUA, [*SUA, "tool", "assistant"]],
    ),
    "hiyouga/glaive-function-calling-v2-sharegpt": (
        [{"conversations": CALLS, "tools": f"[{FUNCTION}]"}, {"conversations": SHAREGPT, "tools": "[]"}],
        [[*UA, "tool", "assistant"], UA],
    ),
    "Salesforce/xlam-function-calling-60k": (
        [{"id": n, "query": Q, "answers": str(CALL).replace("'", '"'), "tools": f"[{FUNCTION}]"} for n in range(2)],
        [UA, UA],
    ),
    "BelleGroup/train_2M_CN": (
        [{"instruction": "海鸥为什么叫？", "input": "", "output": "为了警告同伴。"}] * 2,
        [UA, UA],
    ),
    "YeungNLP/firefly-train-1.1M": (
        [{"kind": "NLI", "input": "海鸥为什么叫？", "target": "为了警告同伴。"}] * 2,
        [UA, UA],
    ),
    "meta-math/MetaMathQA": (
        [{"type": "MATH_FOBAR", "query": Q, "original_question": "Why?", "response": A}] * 2,
        [UA, UA],
    ),
    "HuggingFaceH4/no_robots": (
        [
            {
                "prompt": Q,
                "prompt_id": "1",
                "messages": [{"role": "system", "content": "Be brief."}, *CHAT],
                "category": "Chat",
            }
        ]
        * 2,
        [SUA, SUA],
    ),
    "allenai/tulu-3-sft-mixture": ([{"id": "0", "messages": CHAT, "source": "a"}] * 2, [UA, UA]),
    "HuggingFaceTB/smoltalk": ([{"messages": CHAT, "source": "a"}] * 2, [UA, UA]),
    "GAIR/lima": (
        [{"conversations": [Q, A], "source": "a"}, {"conversations": [Q, A] * 2, "source": "b"}],
        [UA, UA * 2],
    ),
    "openai/gsm8k": ([{"question": Q, "answer": A}] * 2, [UA, UA]),
    "open-thoughts/OpenThoughts-114k": (
        [{"system": "Think first.", "conversations": [{"from": "user", "value": Q}, {"from": "assistant", "value": A}]}]
        * 2,
        [SUA, SUA],
    ),
    "HuggingFaceH4/Multilingual-Thinking": (
        [
            {
                "messages": [
                    {"role": "system", "content": "reasoning language: French", "thinking": None},
                    {"role": "user", "content": Q, "thinking": None},
                    {"role": "assistant", "content": A, "thinking": "Les mouettes crient."},
                ],
                **{"reasoning_language": "French", "developer": "x", "user": Q, "analysis": "y", "final": A},
            }
        ]
        * 2,
        [SUA, SUA],
    ),
    "HuggingFaceH4/ultrafeedback_binarized": (
        [
            {
                **{"prompt": Q, "prompt_id": "1", "messages": CHAT, "score_chosen": 8.0, "score_rejected": 3.0},
                **{"chosen": CHAT, "rejected": [CHAT[0], {"role": "assistant", "content": "No idea."}]},
            }
        ]
        * 2,
        [UA, UA],
    ),
    "Anthropic/hh-rlhf": (
        [{"chosen": f"\n\nHuman: {Q}\n\nAssistant: {A}", "rejected": f"\n\nHuman: {Q}\n\nAssistant: No."}] * 2,
        [UA, UA],
    ),
}


@cache
def lines() -> dict[str, tuple[str, str]]:
    return {name: (line, unread) for name, line, unread in LINE.findall(PAGE.read_text(encoding="utf-8"))}


def test_the_page_lists_these_datasets():
    assert sorted(lines()) == sorted(SAMPLES)
    assert len(SAMPLES) >= 20


@pytest.mark.parametrize("name", SAMPLES)
def test_the_line_of_a_dataset_reads_it(name):
    rows, roles = SAMPLES[name]
    line, listed = lines()[name]
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = typed(compose(CONFIG_NAME, read_command_line(shlex.split(line)).overrides))
    base = config.data.base
    assert base.id == name or (base.path or "").endswith(".json")
    reader = Reader(base, "data.base")
    found = [reader.read(row) for row in rows]
    assert [[turn.role for turn in conversation.turns] for conversation in found] == roles
    assert all(conversation.dropped is None for conversation in found)
    unread = {column for conversation in found for column in conversation.unread} - {"source", "dataset"}
    assert sorted(unread) == sorted(filter(None, (column.strip(" `") for column in listed.replace("–", "").split(","))))
