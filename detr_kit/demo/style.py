"""How the page looks, in light and in dark, and the few lines of script it needs."""

from __future__ import annotations

# Names that every system has; a page that fetches fonts does not work without internet.
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
MONOSPACE = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

# `!important` stands where gradio's rules for text would win, whatever their rank in a version.
CSS = """
.gradio-container.gradio-container { width: 100%; max-width: 1400px; margin: 0 auto; }
.dk-plain .html-container { padding: 0; }
.dk-title h1 { font-size: 1.6rem !important; font-weight: 650 !important; margin: 0 !important; }
.dk-title p, .dk-note { margin: 0 !important; }
.dk-title p *, .dk-note, .dk-caption, .dk-caption span {
  color: var(--body-text-color-subdued) !important;
}
.dk-title p span + span::before, .dk-caption > span + span::before {
  content: "·"; margin: 0 0.5em; opacity: 0.6;
}

/* Where pictures are dropped: gradio's words are about files. It keeps its height when one came. */
#dk-upload { min-height: 142px; }
#dk-upload [data-testid="upload-text"] { font-size: 0; line-height: 1.4; }
#dk-upload [data-testid="upload-text"] .or { display: none; }
#dk-upload [data-testid="upload-text"]::after {
  content: "Drop a picture here, or click to choose one"; font-size: 0.95rem;
}
.dk-note { font-size: 0.8rem !important; }
#dk-filter .wrap { max-height: 15rem; overflow-y: auto; }

#dk-examples .grid-container {
  grid-template: none / repeat(4, minmax(0, 1fr)); grid-auto-rows: auto; gap: 6px; height: auto;
  padding: 2.2rem 0.6rem 0.6rem;
}
#dk-examples .gallery-item { height: auto; }
#dk-examples { height: auto !important; }
#dk-examples .grid-wrap {
  height: auto !important; min-height: 0; max-height: 17rem; overflow-y: auto;
}
#dk-examples .thumbnail-item { width: 100%; height: auto; aspect-ratio: 1; border-radius: 8px; }
#dk-examples .caption-label { display: none; }

/* The picture, and its boxes in the same cell. */
#dk-stage {
  display: grid; gap: 0; padding: 0; overflow: hidden; min-height: 26rem;
  background: var(--background-fill-secondary);
  border: 1px solid var(--border-color-primary); border-radius: 10px;
}
#dk-stage > * {
  grid-area: 1 / 1; min-width: 0; overflow: visible !important; display: grid;
  align-content: center;
}
#dk-boxes [data-testid="status-tracker"] { inset: 0; background: none; }
#dk-boxes [data-testid="status-tracker"] > :not(.progress-text) { display: none; }
#dk-boxes .progress-text {
  position: absolute; inset: 50% auto auto 50%; transform: translate(-50%, -50%);
  padding: 0.35rem 1.1rem; border-radius: 999px; font-family: inherit; font-size: 0.9rem;
  color: var(--body-text-color); background: var(--background-fill-primary);
  border: 1px solid var(--border-color-primary); box-shadow: 0 2px 10px rgb(0 0 0 / 0.15);
}
.dk-frame {
  position: relative; margin: 0 auto; aspect-ratio: var(--width) / var(--height);
  width: min(100%, 66vh * var(--width) / var(--height), 1px * var(--zoom) * var(--width));
}
.gradio-container .dk-frame img { display: block; width: 100%; height: 100%; margin: 0; }
.dk-box {
  position: absolute; box-sizing: border-box; border: 2px solid var(--color); border-radius: 3px;
  box-shadow: 0 0 0 1px rgb(0 0 0 / 0.3); transition: background-color 0.12s;
}
.dk-box span {
  position: absolute; left: -2px; bottom: 100%; padding: 0 5px; white-space: nowrap;
  display: flex; gap: 0.4em; max-width: 13rem;
  background: var(--color); color: var(--ink); border-radius: 3px 3px 0 0;
  font-size: 12px; line-height: 18px; pointer-events: none;
}
.gradio-container .dk-box span b { font-weight: 650; color: inherit; }
.dk-box em, .dk-table em, .dk-classes em {
  font-style: normal; color: inherit; overflow: hidden; text-overflow: ellipsis;
}
.dk-classes em, .dk-table em { max-width: 18rem; }
.dk-table em { display: inline-block; vertical-align: bottom; }
.dk-classes em { white-space: nowrap; }
.dk-box.dk-in span { bottom: auto; top: 0; left: 0; border-radius: 0 0 3px 0; }
.dk-box.dk-end span { left: auto; right: -2px; }
.dk-box:hover, .dk-box.dk-lit {
  z-index: 5; background: color-mix(in srgb, var(--color) 30%, transparent);
}
.dk-notice {
  margin: auto; padding: 2.5rem; max-width: 36rem; text-align: center; line-height: 1.5;
  color: var(--body-text-color-subdued);
}
.pending .dk-hint { visibility: hidden; }
.dk-problem {
  padding: 0.9rem 1.3rem; border-radius: 10px; overflow-wrap: anywhere;
  color: #8f1d1d !important; background: #fdecec; border: 1px solid #f3c1c1;
}
.dark .dk-problem {
  color: #ffc9c9 !important; background: #3a1719; border-color: #6b2a2d;
}

.dk-caption { overflow-wrap: anywhere; }
.dk-caption > span:not(:first-child) { white-space: nowrap; }
.dk-caption b { color: var(--body-text-color) !important; font-weight: 600; }

.dk-classes { display: flex; flex-wrap: wrap; gap: 0.4rem; }
.dk-classes > span {
  display: inline-flex; align-items: center; gap: 0.45em; margin: 0; padding: 0.2em 0.8em;
  border: 1px solid var(--border-color-primary); border-radius: 999px; font-size: 0.9rem;
  background: var(--background-fill-secondary);
}
.dk-classes small { color: var(--body-text-color-subdued) !important; }
.dk-classes .dk-off { opacity: 0.5; text-decoration: line-through; }
.dk-classes i, .dk-table i {
  display: inline-block; width: 0.7em; height: 0.7em; border-radius: 3px; background: var(--color);
  flex: none;
}

/* However wide a table is, the page is not. */
.dk-table {
  contain: inline-size; max-height: 20rem; overflow: auto;
  border: 1px solid var(--border-color-primary); border-radius: 10px;
  background: var(--background-fill-primary);
}
.gradio-container .dk-table table {
  width: 100%; margin: 0; border-collapse: collapse; font-size: 0.88rem;
  font-variant-numeric: tabular-nums;
}
.gradio-container .dk-table caption {
  caption-side: bottom; padding: 0.4rem 0.9rem; text-align: left; font-size: 0.8rem;
  color: var(--body-text-color-subdued);
}
.gradio-container .dk-table :is(table, thead, tbody, tr) { border: 0 !important; }
.gradio-container .dk-table :is(th, td) {
  padding: 0.35rem 0.9rem; text-align: right; white-space: nowrap; border: 0 !important;
}
.gradio-container .dk-table th:first-child { text-align: left; font-weight: 500; }
.gradio-container .dk-table tbody :is(th, td) {
  border-top: 1px solid var(--border-color-primary) !important;
}
.gradio-container .dk-table thead th {
  position: sticky; top: 0; background: var(--background-fill-secondary); font-weight: 600;
  color: var(--body-text-color-subdued);
}
.dk-table tbody th i { margin-right: 0.6em; }
.dk-table tbody tr:is(:hover, .dk-lit) { background: var(--background-fill-secondary); }
.dk-bar {
  display: inline-block; width: 5rem; height: 0.4rem; margin-right: 0.7em; border-radius: 9px;
  vertical-align: middle;
  background: linear-gradient(var(--color) 0 0) 0 / var(--score) 100% no-repeat,
    var(--border-color-primary);
}

@media (max-width: 700px) {
  #dk-stage { min-height: 14rem; }
  .dk-classes em, .dk-table em { max-width: 9rem; }
  .dk-bar { display: none; }
  .gradio-container .dk-table :is(th, td) { padding: 0.35rem 0.5rem; }
  #dk-examples .grid-wrap { max-height: 11rem; }
}
"""

_ICON = (
    "%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32' fill='none' stroke='%232563eb' "
    "stroke-width='4'%3E%3Crect x='4' y='4' width='24' height='24' rx='4'/%3E"
    "%3Ccircle cx='16' cy='16' r='3' fill='%232563eb'/%3E%3C/svg%3E"
)
# A row of the table and its box light up together.
HEAD = f"""
<link rel="icon" type="image/svg+xml" href="data:image/svg+xml,{_ICON}">
<script>
for (const [kind, on] of [["mouseover", true], ["mouseout", false]]) {{
  document.addEventListener(kind, (event) => {{
    const over = event.target.closest && event.target.closest("[data-row]");
    if (!over) return;
    for (const each of document.querySelectorAll(`[data-row="${{over.dataset.row}}"]`))
      each.classList.toggle("dk-lit", on);
  }});
}}
</script>
"""
