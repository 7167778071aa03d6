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
    """Return the function that gives all kept conversations, newest first, as a JSON list of texts, and the width."""
    return f"""() => {{
  const prefix = {json.dumps(storage_key(models))}, found = [];
  for (let at = 0; at < localStorage.length; at++) {{
    const name = localStorage.key(at);
    if (!name.startsWith(prefix)) continue;
    try {{
      const entry = JSON.parse(localStorage.getItem(name));
      found.push([Number(entry.time) || 0, entry.text]);
    }} catch {{}}
  }}
  return [JSON.stringify(found.sort((one, two) => two[0] - one[0]).map(entry => entry[1])), window.innerWidth];
}}"""


def save(models: Sequence[str]) -> str:
    """Return the function that keeps a conversation; where there is no room, the oldest make some."""
    return f"""(text) => {{
  if (!text) return;
  const prefix = {json.dumps(storage_key(models))}, name = prefix + JSON.parse(text).id;
  const time = other => {{
    try {{ return Number(JSON.parse(localStorage.getItem(other)).time) || 0; }} catch {{ return 0; }}
  }};
  const others = () => Object.keys(localStorage).filter(other => other.startsWith(prefix) && other !== name)
    .sort((one, two) => time(one) - time(two));
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
.main.fillable { padding: 12px 16px; }
.sidebar-parent .column { gap: 10px; }
.block.tm-title { padding: 0 0 0 2rem; min-height: 26px; margin: 0 !important; width: 100% !important; }
.tm-title h1 { font-size: 1.05rem; margin: 0; font-weight: 600; overflow-wrap: anywhere; }
.tm-title p { margin: .15rem 0; font-size: .85rem; color: var(--body-text-color-subdued); }
.tm-title progress { width: 100%; height: .5rem; accent-color: var(--color-accent); }
.tm-title .tm-wrong { color: #b91c1c; font-weight: 600; }
.dark .tm-title .tm-wrong { color: #fca5a5; }
.tm-said { font-size: .8rem; color: var(--body-text-color-subdued); min-height: 1.2rem; padding: 0 .25rem; }
.tm-side { min-width: 0 !important; gap: 4px !important; }
.tm-list label { width: 100%; }
.tm-list label span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
@media (max-width: 767px) {
  .row:has(> .tm-side) { flex-wrap: wrap; gap: 6px; }
  .tm-side { flex: 1 1 100% !important; }
  .tm-title h1 { font-size: .85rem; }
  .tm-side:not(:only-child) .tm-chat { height: calc(50dvh - 125px) !important; min-height: 150px; }
}
"""
