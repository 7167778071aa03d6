"""The table of public datasets in docs/data.md: each line reads rows of that dataset's shape."""

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from tometune.config.command_line import read_command_line
from tometune.config.data import SourceConfig
from tometune.config.root import CONFIG_NAME, conf_dir, register, typed
from tometune.data.formats import Reader

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
LINE = re.compile(r"^\| (?P<name>[\w.-]+/[\w.-]+) \| `(?P<line>[^`]+)` \| (?P<unread>[^|]*) \|", re.MULTILINE)

Q, A = "Why do gulls cry?", "To warn the others."
SHAREGPT = [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]
CHAT = [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]
SYSTEM, BRIEF = {"from": "system", "value": "Be brief."}, {"role": "system", "content": "Be brief."}
WEIGHTED = [{**SYSTEM, "weight": None}, {**SHAREGPT[0], "weight": 0.0}, {**SHAREGPT[1], "weight": 1.0}]
CALLS = [
    SHAREGPT[0],
    {"from": "function_call", "value": '{"name": "gulls", "arguments": {"month": 5}}'},
    {"from": "observation", "value": '{"cries": 7}'},
    {"from": "gpt", "value": "Seven times."},
]
FUNCTION = '{"name": "gulls", "description": "Cries a month", "parameters": {"type": "object"}}'
ANSWERS = '[{"name": "gulls", "arguments": {"month": 5}}]'
ALPACA = {"instruction": Q, "input": "At night.", "output": A, "text": f"### Instruction: {Q} ### Response: {A}"}
HERMES = {"conversations": SHAREGPT, "category": "birds", "system_prompt": "Be brief.", "views": 2.0}
CHATML = f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n{A}<|im_end|>\n"
GLAIVE = f"""USER: {Q}\n\n\nASSISTANT: <functioncall> {{}} <|endoftext|>\n\n
FUNCTION RESPONSE: {{}}\n\n\nASSISTANT: {A} <|endoftext|>"""
THOUGHTS = [{**BRIEF, "thinking": None}, {**CHAT[0], "thinking": None}, {**CHAT[1], "thinking": "Les mouettes."}]
FRENCH = {"reasoning_language": "French", "developer": "x", "user": Q, "analysis": "y", "final": A}
FEEDBACK = {"prompt": Q, "prompt_id": "1", "messages": CHAT, "score_chosen": 8.0, "score_rejected": 3.0}
UA, SUA = ["user", "assistant"], ["system", "user", "assistant"]
TOOL = ["tool", "assistant"]

# A row or two of each dataset's shape, in our own words, and the roles that they are read as.
SAMPLES: dict[str, list[tuple[dict[str, Any], list[str]]]] = {
    "mlabonne/FineTome-100k": [({"conversations": SHAREGPT, "source": "a", "score": 5.1}, UA)],
    "arcee-ai/The-Tome": [({"conversations": [SYSTEM, *SHAREGPT], "dataset": "a"}, SUA)],
    "tatsu-lab/alpaca": [(ALPACA, UA)],
    "databricks/databricks-dolly-15k": [
        ({"instruction": Q, "context": "In colonies.", "response": A, "category": "open_qa"}, UA)
    ],
    "OpenAssistant/oasst_top1_2023-08-25": [({"text": CHATML * 2}, UA * 2)],
    "timdettmers/openassistant-guanaco": [({"text": f"### Human: {Q}### Assistant: {A}### Human: {Q}"}, [*UA, "user"])],
    "HuggingFaceH4/ultrachat_200k": [({"prompt": Q, "prompt_id": "2", "messages": CHAT * 2}, UA * 2)],
    "stingning/ultrachat": [({"id": "1", "data": [Q, A, Q, A]}, UA * 2)],
    "anon8231489123/ShareGPT_Vicuna_unfiltered": [({"id": "1", "conversations": SHAREGPT * 2}, UA * 2)],
    "teknium/OpenHermes-2.5": [({**HERMES, "source": "a"}, SUA)],
    "Open-Orca/OpenOrca": [
        ({"id": "flan.1", "system_prompt": text, "question": Q, "response": A}, roles)
        for text, roles in (("", UA), ("Be brief.", SUA))
    ],
    "Open-Orca/SlimOrca": [({"conversations": WEIGHTED}, SUA)],
    "glaiveai/glaive-function-calling-v2": [
        ({"system": f"SYSTEM: You may call these functions -\n{FUNCTION}", "chat": GLAIVE}, SUA + TOOL),
    ],
    "hiyouga/glaive-function-calling-v2-sharegpt": [({"conversations": CALLS, "tools": f"[{FUNCTION}]"}, UA + TOOL)],
    "Salesforce/xlam-function-calling-60k": [
        ({"id": 1, "query": Q, "answers": ANSWERS, "tools": f"[{FUNCTION}]"}, UA),
    ],
    "BelleGroup/train_2M_CN": [({"instruction": "海鸥为什么叫？", "input": "", "output": "为了警告同伴。"}, UA)],
    "YeungNLP/firefly-train-1.1M": [({"kind": "NLI", "input": "海鸥为什么叫？", "target": "为了警告同伴。"}, UA)],
    "meta-math/MetaMathQA": [({"type": "MATH_FOBAR", "query": Q, "original_question": "Why?", "response": A}, UA)],
    "HuggingFaceH4/no_robots": [({"prompt": Q, "prompt_id": "1", "messages": [BRIEF, *CHAT], "category": "Chat"}, SUA)],
    "allenai/tulu-3-sft-mixture": [({"id": "0", "messages": CHAT, "source": "a"}, UA)],
    "HuggingFaceTB/smoltalk": [({"messages": CHAT, "source": "a"}, UA)],
    "GAIR/lima": [({"conversations": [Q, A] * 2, "source": "b"}, UA * 2)],
    "openai/gsm8k": [({"question": Q, "answer": A}, UA)],
    "open-thoughts/OpenThoughts-114k": [({"system": "Think first.", "conversations": SHAREGPT}, SUA)],
    "HuggingFaceH4/Multilingual-Thinking": [({"messages": THOUGHTS, **FRENCH}, SUA)],
    "HuggingFaceH4/ultrafeedback_binarized": [({**FEEDBACK, "chosen": CHAT, "rejected": CHAT[:1]}, UA)],
    "Anthropic/hh-rlhf": [
        ({"chosen": f"\n\nHuman: {Q}\n\nAssistant: {A}", "rejected": f"\n\nHuman: {Q}\n\nAssistant: No."}, UA)
    ],
}


@cache
def lines() -> dict[str, tuple[str, str]]:
    return {name: (line, unread) for name, line, unread in LINE.findall(PAGE.read_text(encoding="utf-8"))}


def test_the_page_lists_these_datasets():
    assert sorted(lines()) == sorted(SAMPLES)


@cache
def base_of(line: str) -> SourceConfig:
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return typed(compose(CONFIG_NAME, read_command_line(shlex.split(line)).overrides)).data.base


@pytest.mark.parametrize("name", SAMPLES)
def test_the_line_of_a_dataset_reads_it(name):
    line, listed = lines()[name]
    base = base_of(line.replace(name, "a/b"))  # many lines differ in the name alone
    assert f"data.base.id={name}" in line or (base.path or "").endswith(".json")
    reader = Reader(base, "data.base")
    found = [reader.read(row) for row, _ in SAMPLES[name]]
    assert [[turn.role for turn in each.turns] for each in found] == [roles for _, roles in SAMPLES[name]]
    assert all(conversation.dropped is None for conversation in found)
    unread = {column for conversation in found for column in conversation.unread} - {"source", "dataset"}
    assert sorted(unread) == sorted(filter(None, (column.strip(" `") for column in listed.replace("–", "").split(","))))
