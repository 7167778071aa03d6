"""What runs in the browser: conversations are kept there, one entry each, and saved as files from there."""

import json
from collections.abc import Sequence
from hashlib import sha256

MOST = 100
"""Conversations that are kept for one pair of models; the oldest go first."""


def storage_key(models: Sequence[str]) -> str:
    """Return the beginning of the entries' names; other models have others."""
    return f"tometune-chat/{sha256(json.dumps(list(models)).encode()).hexdigest()[:12]}/"


def load(models: Sequence[str]) -> str:
    """Return the function that gives all kept conversations, the newest first, as a JSON list of texts."""
    return f"""() => {{
  const prefix = {json.dumps(storage_key(models))}, found = [];
  for (let at = 0; at < localStorage.length; at++) {{
    const name = localStorage.key(at);
    if (!name.startsWith(prefix)) continue;
    try {{ const entry = JSON.parse(localStorage.getItem(name)); found.push([entry.time, entry.text]); }} catch {{}}
  }}
  return JSON.stringify(found.sort((one, two) => two[0] - one[0]).map(entry => entry[1]));
}}"""


def save(models: Sequence[str]) -> str:
    """Return the function that keeps a conversation; where there is no room, the oldest make some."""
    return f"""(text) => {{
  if (!text) return;
  const prefix = {json.dumps(storage_key(models))}, name = prefix + JSON.parse(text).id;
  const others = () => Object.keys(localStorage).filter(other => other.startsWith(prefix) && other !== name)
    .sort((one, two) => JSON.parse(localStorage.getItem(one)).time - JSON.parse(localStorage.getItem(two)).time);
  for (const old of others().slice(0, Math.max(0, others().length - {MOST - 1}))) localStorage.removeItem(old);
  for (;;) {{
    try {{ localStorage.setItem(name, JSON.stringify({{time: Date.now(), text}})); return; }}
    catch (full) {{ const [old] = others(); if (!old) return; localStorage.removeItem(old); }}
  }}
}}"""


def forget(models: Sequence[str]) -> str:
    """Return the function that forgets a conversation by its id."""
    return f"(id) => {{ localStorage.removeItem({json.dumps(storage_key(models))} + id); }}"


DOWNLOAD = """(text) => {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/json'}));
  link.download = 'conversation.json';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}"""
"""Saves a text as a file; it touches no file on the server."""

CSS = """
.gradio-container { max-width: 1500px !important; }
.tm-title h1 { font-size: 1.15rem; margin: 0; font-weight: 600; }
.tm-title p { margin: .1rem 0 0; font-size: .85rem; color: var(--body-text-color-subdued); }
.tm-title progress { width: 100%; height: .5rem; accent-color: var(--color-accent); }
.tm-title .tm-wrong { color: var(--error-text-color, #b91c1c); font-weight: 600; }
.tm-said { font-size: .8rem; color: var(--body-text-color-subdued); min-height: 1.2rem; padding: 0 .25rem; }
.tm-side { min-width: 0 !important; }
.tm-list label { width: 100%; }
.tm-list label span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
"""
