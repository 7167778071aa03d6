"""What recipe_3b.py reads: a stand-in for Llama-3.2-3B, a base, a pool and four tasks, as repositories of a hub.

Each repository has the id that conf/ asks for, so the measured command needs no override. The model has the shape, the
tokenizer and the template of Llama-3.2-3B, and weights that were trained for a few minutes from random ones.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import yaml
from bench_gpu_model import ROPE, SHAPES, tokenizer_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests/, which is not installed
from tests.hub import Hub, blob_id
from tometune.config.root import conf_dir

FOUR_BITS, SIXTEEN_BITS = "unsloth/Llama-3.2-3B-Instruct-bnb-4bit", "unsloth/Llama-3.2-3B-Instruct"
FINETOME, THE_TOME = "mlabonne/FineTome-100k", "arcee-ai/The-Tome"
POOL_ROWS = 1_752_473  # The-Tome's rows by one count
CARD = "---\nconfigs:\n- config_name: {config}\n  data_files:\n  - split: {split}\n    path: {path}\n---\n"
SMALL = SHAPES["llama32_3b"] | {
    **{"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "rope_parameters": ROPE},
}
"""Its shape in small, to try the scripts out on a CPU."""


def make_inputs(options: argparse.Namespace) -> dict[str, Any]:
    """Write the repositories that are missing below `<folder>/hub`; return seconds and facts of each."""
    root, facts = options.folder / "hub", {}
    for name, build in (("base", make_base), ("pool", make_pool), ("tasks", make_tasks), ("model", make_model)):
        record = root / f"{name}.json"  # written last
        if not record.exists():
            start = time.perf_counter()
            found = build(options, root)
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps(found | {"total_seconds": round(time.perf_counter() - start, 1)}))
        facts[name] = json.loads(record.read_text(encoding="utf-8"))
        print(f"{name}: {facts[name]}", flush=True)
    return facts


def serve(folder: Path) -> Hub:
    """Return a hub over the repositories, whose commits are those that conf/ pins; it is not started."""
    hub = Hub(folder / "hub")
    hub.commits = {task["id"]: task["revision"] for task in map(task_settings, TASKS)}
    with ThreadPoolExecutor() as threads:  # hashed before a client waits for it
        list(threads.map(blob_id, (path for path in (folder / "hub").rglob("*") if path.is_file())))
    return hub


def repository(root: Path, kind: str, repo_id: str) -> Path:
    """Return the new folder of a repository."""
    folder = root / kind / repo_id
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def make_base(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Copy the base, in one shard, with FineTome's card."""
    folder = repository(root, "datasets", FINETOME)
    (folder / "README.md").write_text(CARD.format(config="default", split="train", path="data/train-*"))
    table = pq.read_table(options.base)
    (folder / "data").mkdir(exist_ok=True)
    pq.write_table(table.slice(0, options.base_rows), folder / "data" / "train-00000-of-00001.parquet")
    return {"rows": min(len(table), options.base_rows), "columns": table.column_names}


def make_pool(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Write `pool_rows` rows: the pool, and then again and again with ` (2)`, ` (3)`, … after each row's first turn."""
    folder = repository(root, "datasets", THE_TOME)
    (folder / "README.md").write_text(CARD.format(config="default", split="train", path="data/train-*"))
    (folder / "data").mkdir(exist_ok=True)
    table, left = pq.read_table(options.pool), options.pool_rows
    copies = -(-options.pool_rows // len(table))
    for number in range(1, copies + 1):  # a shard each
        copy = numbered_copy(table, number).slice(0, left)
        pq.write_table(copy, folder / "data" / f"train-{number - 1:05d}-of-{copies:05d}.parquet")
        left -= len(copy)
    return {"rows": options.pool_rows, "copies": copies, "columns": table.column_names}


def numbered_copy(table: pa.Table, number: int) -> pa.Table:
    """Return the rows with the number after the first turn; the first copy is the table itself."""
    if number == 1:
        return table
    chats = table["conversations"].combine_chunks()
    lists = chats.chunk(0) if isinstance(chats, pa.ChunkedArray) else chats
    turns, offsets = lists.flatten(), lists.offsets.to_numpy() - lists.offsets[0].as_py()
    first = np.zeros(len(turns), dtype=bool)
    first[offsets[:-1][offsets[:-1] < offsets[1:]]] = True
    values = turns.field("value")
    ending = pa.scalar(f" ({number})", values.type)
    marked = pc.if_else(
        pa.array(first), pc.binary_join_element_wise(values, ending, pa.scalar("", values.type)), values
    )
    fields = [marked if field.name == "value" else turns.field(field.name) for field in turns.type]
    made = pa.StructArray.from_arrays(fields, [field.name for field in turns.type])
    kind = pa.LargeListArray if pa.types.is_large_list(lists.type) else pa.ListArray
    chats = kind.from_arrays(pa.array(offsets, lists.offsets.type), made)
    return table.set_column(table.column_names.index("conversations"), "conversations", chats)


TASKS = ("dialogue_summarisation", "question_answering", "data_to_text", "instruction_following")


def task_settings(name: str) -> dict[str, Any]:
    """Return a task as conf/ defines it."""
    found: dict[str, Any] = yaml.safe_load((conf_dir() / "eval" / "task" / f"{name}.yaml").read_text(encoding="utf-8"))
    return found


def make_tasks(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Write the four default tasks with their own columns and files, filled with the texts of four other test sets."""

    def rows(name: str) -> list[dict[str, Any]]:
        with (options.tasks / name).open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def folder_of(task: str, below: str) -> Path:
        folder = repository(root, "datasets", task_settings(task)["id"])
        (folder / below).mkdir(parents=True, exist_ok=True)
        return folder

    papers, facts = rows("scitldr_test.jsonl")[:500], rows("e2e_test.jsonl")
    questions, orders = rows("pubmedqa_long.jsonl"), rows("self_instruct_user_oriented.jsonl")
    lines = [
        {"id": f"{row['id']}_{number}", "dialogue": row["input"], "summary": text, "topic": "paper"}
        for row in papers
        for number, text in enumerate(row["references"][:3], 1)
    ]
    pyarrow.csv.write_csv(pa.Table.from_pylist(lines), folder_of("dialogue_summarisation", "") / "test.csv")
    asked = [
        {"id": row["id"], "title": "T", "context": row["context"], "question": row["input"]}
        | {"answers": {"text": row["references"], "answer_start": [0] * len(row["references"])}}
        for row in questions
    ]
    folder, path = folder_of("question_answering", "plain_text"), "plain_text/validation-*"
    (folder / "README.md").write_text(CARD.format(config="plain_text", split="validation", path=path))
    pq.write_table(pa.Table.from_pylist(asked), folder / "plain_text" / "validation-00000-of-00001.parquet")
    pairs = [
        {"meaning_representation": row["input"], "human_reference": text} for row in facts for text in row["references"]
    ]
    pq.write_table(pa.Table.from_pylist(pairs), folder_of("data_to_text", "default/test") / "default/test/0000.parquet")
    chats = [
        {"prompt": row["input"], "prompt_id": row["id"], "category": "Chat"}
        | {
            "messages": [
                {"content": text, "role": role}
                for role, text in (("user", row["input"]), ("assistant", row["references"][0]))
            ]
        }
        for row in orders
    ]
    folder = folder_of("instruction_following", "data")
    pq.write_table(pa.Table.from_pylist(chats), folder / "data" / "test-00000-of-00001.parquet")
    return {"examples": [len(papers), len(questions), len(facts), len(orders)]}


def make_model(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Train a model of the shape from random weights, for `seconds`, and store it in 16 and, on a GPU, in 4 bits."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = tokenizer_of("llama32_3b", root)
    ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**(SMALL if options.small else SHAPES["llama32_3b"]), **ids))
    torch.set_default_dtype(torch.float32)
    losses, seconds = train(model, tokenizer, options)
    tail = [loss for _, loss in losses[-5:]]
    if not options.small and not tail[-1] < losses[0][1]:  # also for NaN
        raise RuntimeError(f"the loss did not fall: {losses}; lower --rate")
    folder = repository(root, "models", SIXTEEN_BITS)
    model.generation_config = GenerationConfig(**ids)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="1GB")
    tokenizer.save_pretrained(folder)
    if device == "cuda":
        del model
        torch.cuda.empty_cache()
        stored = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, quantization_config=stored, device_map={"": 0}
        )
        target = repository(root, "models", FOUR_BITS)
        model.save_pretrained(target, max_shard_size="1GB")
        tokenizer.save_pretrained(target)
    print(json.dumps(losses))
    facts = {"steps": losses[-1][0], "first_loss": losses[0][1], "last_loss": sum(tail) / len(tail)}
    return facts | {"train_seconds": seconds, "parameters": model.num_parameters(), "losses": losses}


def train(model: Any, tokenizer: Any, options: argparse.Namespace) -> tuple[list[tuple[int, float]], float]:
    """Train all weights with AdamW on blocks of the pool's text, the rate falling linearly until the time is over."""
    import torch

    length, rows = (256, 2) if options.small else (2048, 4)
    blocks = token_blocks(tokenizer, options.pool, rows, length)
    optimizer = torch.optim.AdamW(model.parameters(), options.rate, (0.9, 0.95), weight_decay=0.1, fused=True)
    if options.compile:
        for layer in model.model.layers:
            layer.compile()
    model.train()
    losses: list[tuple[int, float]] = []
    start = time.perf_counter()
    for step in itertools.count(1):
        if step == 2:  # the first one compiles
            start = time.perf_counter()
        share = (time.perf_counter() - start) / options.seconds
        if share >= 1 and step > 2:
            break
        for group in optimizer.param_groups:
            group["lr"] = options.rate * min(20 * share + 0.02, 1.0) * max(1.0 - share, 0.02)
        batch = torch.tensor(next(blocks), device=model.device)
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 1 or options.small:
            losses.append((step, round(loss.item(), 4)))
            print(f"model: step {step}, loss {losses[-1][1]}", flush=True)
    for layer in model.model.layers:
        layer._compiled_call_impl = None
    return losses, round(time.perf_counter() - start, 1)


def token_blocks(tokenizer: Any, pool: Path, rows: int, length: int) -> Iterator[Any]:
    """Yield [rows, length] tokens of the pool's conversations, in the chat template, one after the other."""
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    chats, random = pq.read_table(pool)["conversations"], np.random.default_rng(0)
    kept, size = np.empty(0, dtype=np.int64), rows * length
    while True:
        order = random.permutation(len(chats))
        for number in range(0, len(order), 2000):
            found = [
                [{"role": roles.get(turn["from"], "user"), "content": turn["value"] or ""} for turn in chat]
                for chat in chats.take(order[number : number + 2000]).to_pylist()
            ]
            texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in found]
            ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
            kept = np.concatenate([kept, *(np.asarray(row, dtype=np.int64) for row in ids)])
            for start in range(0, len(kept) - size + 1, size):
                yield kept[start : start + size].reshape(rows, length)
            kept = kept[len(kept) - len(kept) % size :]
