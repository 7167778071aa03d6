"""How an export is loaded, in the words of each library; the same lines stand in the card and in docs/serving.md."""

from collections.abc import Sequence

from tometune.runs.finished import Finished

ASK = """messages = [{"role": "user", "content": "What is the capital of France?"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs.to(model.device), max_new_tokens=64, do_sample=False)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""

PEFT = """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{repository}")
tokenizer = AutoTokenizer.from_pretrained("{repository}")
{ask}"""

TRANSFORMERS = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{repository}")
tokenizer = AutoTokenizer.from_pretrained("{repository}")
{ask}"""

UNSLOTH = """from unsloth import FastLanguageModel

model, tokenizer = FastLanguageModel.from_pretrained("{repository}", max_seq_length={length}, load_in_4bit={four})
FastLanguageModel.for_inference(model)
{ask}"""

VLLM = """vllm serve {repository}"""

VLLM_ADAPTER = """vllm serve {base} --enable-lora --lora-modules tuned={repository}"""

LLAMA_CPP = """llama-cli -hf {repository}:{quant} -p "What is the capital of France?" """

OLLAMA = """ollama run hf.co/{repository}:{quant}
# or, with the Modelfile of this repository beside the GGUF:
ollama create {name} -f Modelfile && ollama run {name}"""


def ways_to_load(kind: str, repository: str, finished: Finished, quants: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return (library, language, code) for each library that loads this format.

    Args:
        kind: the format.
        repository: the hub id that the code names.
        finished: the run.
        quants: of a GGUF, the first is named.
    """
    four = kind == "adapter" and finished.record["model"]["quantization"] != "none"
    values = {
        "repository": repository,
        "ask": ASK,
        "base": finished.base_name,
        "name": repository.partition("/")[2].lower(),
        "quant": quants[0].rpartition("-")[2].upper() if kind == "gguf" else "",
        "length": finished.config.trainer.max_length,
        "four": four,
    }
    found = {
        "adapter": [
            ("PEFT", "python", PEFT),
            ("Unsloth", "python", UNSLOTH),
            ("vLLM", "bash", VLLM_ADAPTER),
        ],
        "merged_16bit": [
            ("transformers", "python", TRANSFORMERS),
            ("Unsloth", "python", UNSLOTH),
            ("vLLM", "bash", VLLM),
        ],
        "gguf": [("llama.cpp", "bash", LLAMA_CPP), ("Ollama", "bash", OLLAMA)],
    }[kind]
    return [(library, language, code.format(**values).strip()) for library, language, code in found]
