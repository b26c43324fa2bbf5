#!/usr/bin/env python3
"""Compares training runs: one self-contained HTML page, and its plots as PNG files beside it.

    scripts/compare.py RUN RUN ... [--out DIR]

RUN is a run folder (runs/<name>) with metrics.jsonl and config.json (docs/measurements.md). Ratios are taken against the
first run. Values that are null or missing leave gaps; a run that stopped early is shown as far as it went. Needs
matplotlib and nothing else.

Order below: reading a run; drawing tools; one function per figure; tables; the page.
"""

import argparse
import base64
import html
import io
import json
import math
import pathlib
import sys
from dataclasses import dataclass, field

try:
    import matplotlib
except ImportError:
    sys.exit(f"compare: {sys.executable} has no matplotlib; scripts/setup.sh compare installs it for /usr/bin/python3")

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.colors import LogNorm  # noqa: E402
from matplotlib.patheffects import withStroke  # noqa: E402
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, MultipleLocator, NullFormatter  # noqa: E402

# ---- reading a run ---------------------------------------------------------------------------------------------------


class InputError(Exception):
    """What is wrong with the input, in one sentence."""


@dataclass
class Run:
    """One run. Series are arrays over `step`, NaN where the run wrote null or nothing."""

    folder: pathlib.Path
    label: str
    config: dict
    start: dict  # the line {"event": "start", ...}
    lines: list  # one dict per step, in order of steps
    step: np.ndarray = field(init=False)
    tokens: np.ndarray = field(init=False)
    seconds: np.ndarray = field(init=False)  # training time: step_ms summed up

    def __post_init__(self):
        self.step = np.array([line["step"] for line in self.lines], dtype=float)
        self.tokens = self.series("tokens")
        per_step = number(self.start.get("tokens_per_step"))
        self.tokens = np.where(np.isnan(self.tokens), self.step * per_step, self.tokens)
        self.seconds = np.cumsum(np.nan_to_num(self.series("step_ms"))) / 1000

    def series(self, key):
        return np.array([number(line.get(key)) for line in self.lines], dtype=float)

    def option(self, path):
        """Value of a dotted configuration key; None if the config lacks it."""
        value = self.config
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def tau(self):
        return number(self.option("qk_clip.threshold")) if self.option("qk_clip.enabled") else math.nan

    def clips(self):
        """(step, layer, head) of every clip."""
        return [(line["step"], clip["layer"], clip["head"]) for line in self.lines for clip in line.get("clipped") or []]

    def head_logits(self):
        """(steps, layers, heads) of MaxLogit and its steps; None if the run has none."""
        rows = [(line["step"], line["max_logit_heads"]) for line in self.lines if line.get("max_logit_heads")]
        if not rows:
            return None
        values = np.array([[[number(v) for v in layer] for layer in heads] for _, heads in rows], dtype=float)
        return np.array([step for step, _ in rows], dtype=float), values

    def spectra(self, of, role, key):
        """Steps, then mean, minimum and maximum over the layers of a measure of whole blocks."""
        steps, rows = [], []
        for line in self.lines:
            values = [number(s.get(key)) for s in line.get("spectrum") or []
                      if s.get("of") == of and s.get("role") == role and is_whole_block(s)]
            values = [v for v in values if not math.isnan(v)]
            if values:
                steps.append(line["step"])
                rows.append((np.mean(values), min(values), max(values)))
        return np.array(steps, dtype=float), np.array(rows, dtype=float).reshape(-1, 3)


def number(value):
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def is_whole_block(record):
    head = record.get("head")
    return head is None or head < 0


def read_json(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}") from error


def read_metrics(path):
    """The start line and one dict per step; a step that was written in several lines is put together."""
    try:
        text = path.read_text()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; is this a run folder?") from error
    start, steps = {}, {}
    rows = text.splitlines()
    for place, row in enumerate(rows, 1):
        try:
            line = dict(json.loads(row))
        except (TypeError, ValueError) as error:
            if place == len(rows):
                break  # a run that was killed while it wrote
            raise InputError(f"{path}:{place}: not a JSON object") from error
        if line.get("event") == "start":
            start = start or line
        elif isinstance(line.get("step"), int) and "event" not in line:
            steps.setdefault(line["step"], {}).update(line)
    if not steps:
        raise InputError(f"{path}: no step has finished yet")
    return start, [steps[step] for step in sorted(steps)]


def read_run(folder):
    folder = pathlib.Path(folder)
    start, lines = read_metrics(folder / "metrics.jsonl")
    config_path = folder / "config.json"
    config = read_json(config_path) if config_path.exists() else start.get("config") or {}
    return Run(folder, folder.resolve().name, config, start, lines)


# ---- drawing tools ---------------------------------------------------------------------------------------------------


@dataclass
class Theme:
    name: str
    ink: str
    muted: str
    grid: str
    paper: str
    runs: list  # one colour per run


LIGHT = Theme("light", "#1c2128", "#667080", "#e3e7ec", "#ffffff",
              ["#2563c9", "#d9480f", "#23803b", "#8a3fb8", "#b38600", "#0f8a8a"])
DARK = Theme("dark", "#e4e8ee", "#98a2b0", "#30363f", "#14171c",
             ["#6aa5ff", "#ff8a50", "#5fcf7d", "#cf93f2", "#e3b93c", "#4fd0d0"])


def apply_theme(theme):
    plt.rcParams.update({
        "figure.facecolor": theme.paper, "savefig.facecolor": theme.paper, "axes.facecolor": theme.paper,
        "text.color": theme.ink, "axes.labelcolor": theme.ink, "axes.titlecolor": theme.ink,
        "xtick.color": theme.muted, "ytick.color": theme.muted, "axes.edgecolor": theme.grid,
        "axes.grid": True, "grid.color": theme.grid, "grid.linewidth": 0.8, "axes.axisbelow": True,
        "axes.spines.top": False, "axes.spines.right": False,
        "font.size": 10, "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
        "legend.frameon": False, "figure.constrained_layout.use": True,
    })


def smooth(values):
    """Running mean around each point that skips gaps. Its window shrinks towards the first point, where the curve is
    steep, and is cut at the last one."""
    n = len(values)
    half = max(1, min(30, n // 60))
    known = ~np.isnan(values)
    total = np.concatenate([[0], np.cumsum(np.where(known, values, 0))])
    count = np.concatenate([[0], np.cumsum(known)])
    at = np.arange(n)
    reach = np.minimum(at, half)
    begin, end = at - reach, np.minimum(at + reach + 1, n)
    seen = count[end] - count[begin]
    return np.where(seen > 0, (total[end] - total[begin]) / np.maximum(seen, 1), np.nan)


def last_known(values):
    known = values[~np.isnan(values)]
    return known[-1] if len(known) else math.nan


def show(value, digits=3):
    """A number for people: "–" where there is none."""
    if math.isnan(value):
        return "–"
    if abs(value) >= 10000:
        return f"{value:,.0f}"
    return f"{value:.{digits}f}" if abs(value) < 100 else f"{value:.1f}"


def label_ends(axes, ends):
    """Writes (x, y, text, colour) at the ends of lines, moved apart where they would overlap."""
    ends = sorted((end for end in ends if math.isfinite(end[0]) and math.isfinite(end[1])), key=lambda end: end[1])
    axes.autoscale_view()
    point = axes.figure.dpi / 72
    placed = []
    for x, y, text, colour in ends:
        across, up = axes.transData.transform((x, y))
        shifted = max([up] + [other + 13 * point for beside, other in placed if abs(beside - across) < 45 * point])
        placed.append((across, shifted))
        axes.annotate(text, (x, y), xytext=(5, (shifted - up) / point), textcoords="offset points",
                      color=colour, fontsize=9, va="center", annotation_clip=False,
                      path_effects=[withStroke(linewidth=3, foreground=axes.get_facecolor())])


def set_range_after_warmup(axes, curves):
    """The first steps would flatten everything else: the vertical range is that of the last 95 %."""
    late = np.concatenate([curve[len(curve) // 20:] for curve in curves])
    late = late[~np.isnan(late)]
    if len(late):
        margin = 0.06 * (late.max() - late.min() or 1)
        axes.set_ylim(late.min() - margin, late.max() + margin)


def use_time_axis(axes, runs):
    longest = max(run.seconds[-1] for run in runs)
    unit, seconds = ("s", 1) if longest < 180 else ("min", 60) if longest < 3 * 3600 else ("h", 3600)
    axes.set_xlabel(f"training time ({unit})")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / seconds:g}")
    apart = next((n for n in (1, 2, 5, 10, 15, 20, 30) if longest <= 6 * n * seconds), 60)
    axes.xaxis.set_major_locator(MultipleLocator(apart * seconds))


def use_token_axis(axes):
    axes.set_xlabel("tokens")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def coloured(runs, theme):
    return [(run, theme.runs[i % len(theme.runs)]) for i, run in enumerate(runs)]


def new_figure(runs, theme, rows, columns, size, **options):
    """A grid of axes below a line with the runs' names in their colours."""
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **options)
    figure.suptitle(" ", fontsize=17)  # keeps the room that the legend takes
    handles = [plt.Line2D([], [], color=colour, linewidth=3) for _, colour in coloured(runs, theme)]
    figure.legend(handles, [run.label for run in runs], loc="upper left", ncol=min(len(runs), 6), borderaxespad=0.2)
    return figure, axes


# ---- figures: each takes (runs, theme) and returns a figure, or None where the runs hold nothing for it --------------


def draw_training_loss(axes, runs, theme, abscissa):
    curves = []
    for run, colour in coloured(runs, theme):
        x, y = getattr(run, abscissa), run.series("loss")
        curves.append(smooth(y))
        axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.25)
        axes.plot(x, curves[-1], color=colour, linewidth=1.8)
    floor = number(runs[0].start.get("entropy_floor"))
    if not math.isnan(floor):
        axes.axhline(floor, color=theme.muted, linestyle=":", linewidth=1.2)
        axes.annotate("entropy of the language", (0, floor), xycoords=("axes fraction", "data"), xytext=(4, 3),
                      textcoords="offset points", color=theme.muted, fontsize=8.5)
        curves.append(np.array([floor]))
    set_range_after_warmup(axes, curves)
    label_ends(axes, [(getattr(run, abscissa)[-1], last_known(curve), f"{last_known(curve):.3f}", colour)
                      for (run, colour), curve in zip(coloured(runs, theme), curves)])


def draw_validation_loss(axes, runs, theme, abscissa):
    ends = []
    for run, colour in coloured(runs, theme):
        y = run.series("val_loss")
        there = ~np.isnan(y)
        if there.any():
            x, y = getattr(run, abscissa)[there], y[there]
            axes.plot(x, y, color=colour, linewidth=1.8, marker="o", markersize=4)
            ends.append((x[-1], y[-1], f"{y[-1]:.3f}", colour))
    label_ends(axes, ends)


def plot_loss(runs, theme):
    figure, grid = new_figure(runs, theme, 2, 2, (11, 7.4))
    for row, (title, draw) in enumerate((("Training loss", draw_training_loss),
                                         ("Validation loss", draw_validation_loss))):
        for axes, abscissa in zip(grid[row], ("tokens", "seconds")):
            axes.margins(x=0.02)
            draw(axes, runs, theme, abscissa)
            axes.set_title(title)
            axes.set_ylabel("nats per token")
            if abscissa == "tokens":
                use_token_axis(axes)
            else:
                use_time_axis(axes, runs)
    return figure


def cost_to_reach(levels, curve, cost):
    """What had been spent when the curve first fell to each level; NaN where it never did, or had before it began."""
    there = ~np.isnan(curve)
    best, spent = np.minimum.accumulate(curve[there]), cost[there]
    reached = []
    for level in levels:
        at = int(np.argmax(best <= level)) if len(best) else 0
        if at == 0:
            reached.append(math.nan)
        else:  # a straight line between the two points around it
            part = (best[at - 1] - level) / (best[at - 1] - best[at])
            reached.append(spent[at - 1] + part * (spent[at] - spent[at - 1]))
    return np.array(reached)


LOSSES = (("loss", "training loss", "-", smooth), ("val_loss", "validation loss", "--", lambda values: values))


def draw_ratio(axes, runs, theme, abscissa):
    """Below 1: the run got there with less than the first run."""
    first, ends = runs[0], []
    axes.axhline(1, color=coloured(runs, theme)[0][1], linewidth=1.8)
    for key, _, style, prepare in LOSSES:
        base = prepare(first.series(key))
        late = base[len(base) // 20:]
        if np.isnan(late).all():
            continue
        levels = np.linspace(np.nanmax(late), np.nanmin(late), 200)
        for run, colour in coloured(runs, theme)[1:]:
            ratio = (cost_to_reach(levels, prepare(run.series(key)), getattr(run, abscissa))
                     / cost_to_reach(levels, base, getattr(first, abscissa)))
            axes.plot(levels, ratio, style, color=colour, linewidth=1.8)
            known = np.flatnonzero(~np.isnan(ratio))
            if key == "loss" and len(known):
                ends.append((levels[known[-1]], ratio[known[-1]], f"{ratio[known[-1]]:.2f}", colour))
    axes.invert_xaxis()
    axes.set_ylim(bottom=0)
    label_ends(axes, ends)


def plot_ratio(runs, theme):
    if len(runs) < 2:
        return None
    figure, grid = new_figure(runs, theme, 1, 2, (11, 4.2), sharey=True)
    for axes, abscissa, noun in zip(grid[0], ("tokens", "seconds"), ("Tokens", "Training time")):
        draw_ratio(axes, runs, theme, abscissa)
        axes.set_title(f"{noun} to reach a loss level")
        axes.set_xlabel("loss level (nats per token)")
        axes.set_ylabel(f"relative to {runs[0].label}")
    styles = [plt.Line2D([], [], color=theme.muted, linestyle=style) for _, _, style, _ in LOSSES]
    grid[0, 1].legend(styles, [title for _, title, _, _ in LOSSES], loc="lower left")
    return figure


def plot_max_logit(runs, theme):
    if all(np.isnan(run.series("max_logit")).all() for run in runs):
        return None
    figure, grid = new_figure(runs, theme, 1, 1, (11, 4.2))
    axes, ends = grid[0, 0], []
    for place, (run, colour) in enumerate(coloured(runs, theme)):
        y = run.series("max_logit")
        y[~(y > 0)] = np.nan  # a logarithmic axis has no place for them
        axes.plot(run.tokens, y, color=colour, linewidth=1.4)
        known = np.flatnonzero(~np.isnan(y))
        if len(known):
            ends.append((run.tokens[known[-1]], y[known[-1]], show(y[known[-1]], 1), colour))
        clipped = np.isin(run.step, [step for step, _, _ in run.clips()])
        axes.plot(run.tokens[clipped], np.full(clipped.sum(), 0.02 + 0.03 * place), "|", color=colour, markersize=5,
                  markeredgewidth=0.8, transform=axes.get_xaxis_transform())
    for tau in sorted({run.tau() for run in runs if not math.isnan(run.tau())}):
        axes.axhline(tau, color=theme.muted, linestyle="--", linewidth=1.2)
        axes.annotate(f"QK-Clip threshold τ = {tau:g}", (0, tau), xycoords=("axes fraction", "data"), xytext=(4, 4),
                      textcoords="offset points", color=theme.muted, fontsize=8.5)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title("MaxLogit: largest attention logit of all heads (ticks at the bottom: some head was clipped)")
    axes.set_ylabel("MaxLogit")
    use_token_axis(axes)
    axes.margins(x=0.02)
    label_ends(axes, ends)
    return figure


def pool_columns(steps, values, columns):
    """At most so many columns; each is the maximum of its steps, so that no spike is lost. NaN wins."""
    pieces = np.array_split(np.arange(len(steps)), min(columns, len(steps)))
    edges = np.array([steps[piece[0]] for piece in pieces] + [steps[-1] + 1])
    return edges, np.stack([values[piece].max(axis=0) for piece in pieces], axis=-1)


def draw_heat_map(axes, run, theme, **colours):
    steps, values = run.head_logits()
    layers, heads = values.shape[1:]
    edges, cells = pool_columns(steps, values.reshape(len(steps), layers * heads), 500)
    mesh = axes.pcolormesh(edges, np.arange(layers * heads + 1) - 0.5, cells, rasterized=True, **colours)
    for layer in range(1, layers):
        axes.axhline(layer * heads - 0.5, color=theme.paper, linewidth=1.5)
    clips = run.clips()
    axes.plot([step for step, _, _ in clips], [layer * heads + head for _, layer, head in clips], "|",
              color="#4fd0ff", markersize=4, markeredgewidth=1)
    axes.grid(False)
    axes.set_ylim(layers * heads - 0.5, -0.5)
    axes.set_yticks([layer * heads + (heads - 1) / 2 for layer in range(layers)],
                    [f"layer {layer}" for layer in range(layers)])
    ever = len({(layer, head) for _, layer, head in clips})
    note = f"{len(clips)} clips in {ever} of {layers * heads} heads (blue)" if clips else "no clips"
    axes.set_title(f"{run.label}: {note}")
    return mesh


def plot_heat_maps(runs, theme):
    shown = [run for run in runs if run.head_logits()]
    logits = [run.head_logits()[1] for run in shown]
    positive = np.concatenate([values[values > 0] for values in logits] or [np.array([])])
    if not len(positive):
        return None
    low, high = max(np.percentile(positive, 1), positive.max() / 1e5), positive.max()
    norm = LogNorm(low, max(high, low * 1.01), clip=True)
    cmap = plt.get_cmap("magma").with_extremes(bad=theme.muted)

    rows = max(values.shape[1] * values.shape[2] for values in logits)
    height = 1.2 + len(shown) * min(max(1.6, 0.09 * rows + 0.8), 6)
    figure, grid = plt.subplots(len(shown), 1, figsize=(11, height), squeeze=False, sharex=True)
    for axes, run in zip(grid[:, 0], shown):
        mesh = draw_heat_map(axes, run, theme, norm=norm, cmap=cmap)
    grid[-1, 0].set_xlabel("step")
    grid[-1, 0].xaxis.set_major_locator(MaxNLocator(8, integer=True))
    figure.colorbar(mesh, ax=list(grid[:, 0]), label="MaxLogit of a head", pad=0.01, aspect=30,
                    ticks=LogLocator(subs=(1, 2, 5)), format=lambda value, _: f"{value:g}").minorticks_off()
    return figure


ROLES = ("q", "k", "v", "o", "gate", "up", "down")
MEASURES = (("sigma_max", "largest singular\nvalue"), ("stable_rank", "stable rank"),
            ("effective_rank", "effective rank"), ("entropy", "entropy (nats)"))


def plot_spectra(of):
    def plot(runs, theme):
        roles = [role for role in ROLES if any(len(run.spectra(of, role, "entropy")[0]) for run in runs)]
        if not roles:
            return None
        figure, grid = new_figure(runs, theme, len(MEASURES), len(roles), (1.4 + 1.75 * len(roles), 7.6), sharex=True)
        for row, (key, title) in enumerate(MEASURES):
            for column, role in enumerate(roles):
                axes = grid[row, column]
                for run, colour in coloured(runs, theme):
                    steps, values = run.spectra(of, role, key)
                    axes.fill_between(steps, values[:, 1], values[:, 2], color=colour, alpha=0.16, linewidth=0)
                    axes.plot(steps, values[:, 0], color=colour, linewidth=1.6,
                              marker="o" if len(steps) < 3 else None, markersize=3)
                if row == 0:
                    axes.set_title(role)
                if column == 0:
                    axes.set_ylabel(title)
                if row == len(MEASURES) - 1:
                    axes.set_xlabel("step")
                axes.tick_params(labelsize=8)
                axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
                axes.yaxis.set_major_locator(MaxNLocator(4))
                axes.ticklabel_format(axis="y", scilimits=(-2, 4))
                axes.yaxis.get_offset_text().set_size(7.5)
        return figure
    return plot


MEMORY = (("weights", "#4c78a8"), ("gradients", "#72b7b2"), ("optimizer", "#e45756"), ("activations", "#b8a1d0"),
          ("scratch", "#bab0ac"), ("probe", "#e0a63c"), ("program", "#8d99a6"))


def planned_mib(run, purpose):
    return number((run.start.get("memory") or {}).get(purpose)) / 2**20


def optimizer_share(run):
    """Percent of each step's time."""
    step_ms = run.series("step_ms")
    return 100 * run.series("optimizer_ms") / np.where(step_ms > 0, step_ms, np.nan)


def draw_over_steps(axes, runs, theme, title, unit, values):
    ends = []
    for run, colour in coloured(runs, theme):
        curve = smooth(values(run))
        axes.plot(run.step, curve, color=colour, linewidth=1.6)
        ends.append((run.step[-1], last_known(curve), show(last_known(curve), 1), colour))
    axes.set_title(title)
    axes.set_ylabel(unit)
    axes.set_xlabel("step")
    axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
    label_ends(axes, ends)


def draw_memory(axes, runs):
    left = np.zeros(len(runs))
    for purpose, colour in MEMORY:
        mib = np.nan_to_num([planned_mib(run, purpose) for run in runs])
        if mib.any():
            axes.barh(range(len(runs)), mib, left=left, color=colour, label=purpose, height=0.4)
            left += mib
    for place, run in enumerate(runs):
        axes.text(0, place - 0.28, f"{run.label}: {left[place]:,.0f} MiB", fontsize=9)
    axes.set_title("Memory as planned")
    axes.set_xlabel("MiB")
    axes.set_yticks([])
    axes.set_ylim(len(runs) + 0.2, -0.7)
    axes.grid(axis="y", visible=False)
    if left.any():
        axes.legend(loc="lower center", ncol=4, fontsize=7.5, handlelength=1, columnspacing=0.8)


def plot_cost(runs, theme):
    figure, grid = new_figure(runs, theme, 1, 3, (11, 3.9), gridspec_kw={"width_ratios": [1, 1, 1.15]})
    share_axes, speed_axes, memory_axes = grid[0]
    draw_over_steps(share_axes, runs, theme, "Optimizer's share of the step", "% of step time", optimizer_share)
    draw_over_steps(speed_axes, runs, theme, "Speed", "tokens per second", lambda run: run.series("tokens_per_s"))
    speed_axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    draw_memory(memory_axes, runs)
    return figure


FIGURES = (
    ("loss", "Loss", "Training loss is a running mean over the raw values behind it. Training time is the sum of the "
     "steps' times: evaluation and checkpoints are not in it.", plot_loss),
    ("ratio", "Cost to reach a loss", "For each loss level that both runs reached: what the run had spent by then, "
     "divided by what the first run had spent. Below 1 it got there with less.", plot_ratio),
    ("max_logit", "MaxLogit", "The largest q·k/√d of a step, over all layers, heads and causal pairs, signed, before the "
     "softmax. QK-Clip scales a head's query and key weights down as soon as its maximum passes τ.", plot_max_logit),
    ("heat_maps", "MaxLogit of each head", "One row a head, grouped by layer; one colour scale for all runs. Where steps "
     "share a column it shows their maximum.", plot_heat_maps),
    ("spectrum_weight", "Spectra of the weights", "Line: mean over the layers. Band: smallest and largest layer. "
     "Entropy is −Σ p ln p with p = σ/Σσ, effective rank its exponential, stable rank ‖W‖²/σ²max.",
     plot_spectra("weight")),
    ("spectrum_momentum", "Spectra of the momentum", "The same measures of the momentum buffer.",
     plot_spectra("momentum")),
    ("spectrum_update", "Spectra of the update", "The same measures of the step that the optimizer takes: Muon's is "
     "close to orthogonal, so its effective rank is close to full.", plot_spectra("update")),
    ("cost", "Cost of the optimizer", "Time of the optimizer within a step, speed, and memory as planned at the start.",
     plot_cost),
)

# ---- tables ----------------------------------------------------------------------------------------------------------


def describe_end(run):
    planned = number(run.option("train.steps"))
    if not math.isnan(planned) and run.step[-1] < planned:
        return f"stopped at step {run.step[-1]:.0f} of {planned:.0f}"
    return f"finished, {run.step[-1]:.0f} steps"


def describe_machine(run):
    return ", ".join(run.start[key] for key in ("device", "precision") if key in run.start) or "–"


def median(values):
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else math.nan


def extreme(values, choose):
    known = values[~np.isnan(values)]
    return float(choose(known)) if len(known) else math.nan


def share_of_heads_clipped(run):
    logits = run.head_logits()
    if logits is None:
        return "–"
    heads = logits[1].shape[1] * logits[1].shape[2]
    ever = len({(layer, head) for _, layer, head in run.clips()})
    return f"{100 * ever / heads:.0f} % ({ever} of {heads})"


def optimizer_state(run):
    mib = planned_mib(run, "optimizer_state")
    return "–" if math.isnan(mib) else f"{mib:.1f} MiB"


SUMMARY = (
    ("outcome", describe_end),
    ("parameters", lambda run: show(number(run.start.get("parameters")), 0)),
    ("machine", describe_machine),
    ("tokens", lambda run: f"{run.tokens[-1]:,.0f}"),
    ("training time", lambda run: f"{run.seconds[-1]:,.0f} s"),
    ("final validation loss", lambda run: show(last_known(run.series("val_loss")), 4)),
    ("best validation loss", lambda run: show(extreme(run.series("val_loss"), min), 4)),
    ("final training loss (running mean)", lambda run: show(last_known(smooth(run.series("loss"))), 4)),
    ("tokens/s (median)", lambda run: show(median(run.series("tokens_per_s")), 0)),
    ("step time (median)", lambda run: f"{show(median(run.series('step_ms')), 1)} ms"),
    ("MFU (median)", lambda run: f"{show(100 * median(run.series('mfu')), 1)} %"),
    ("optimizer's share of the step (median)", lambda run: f"{show(median(optimizer_share(run)), 1)} %"),
    ("optimizer state", optimizer_state),
    ("largest MaxLogit", lambda run: show(extreme(run.series("max_logit"), max), 1)),
    ("clips", lambda run: f"{len(run.clips()):,}"),
    ("heads ever clipped", share_of_heads_clipped),
)


def flatten(config, prefix=""):
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value)


def config_differences(runs):
    """Rows of (key, value per run) for the keys that differ between runs; and how many do not."""
    flat = [dict(flatten(run.config)) for run in runs]
    keys = list(dict.fromkeys(key for one in flat for key in one if key != "name"))
    rows = [(key, [one.get(key, "–") for one in flat]) for key in keys]
    different = [row for row in rows if len(set(row[1])) > 1]
    return different, len(rows) - len(different)


# ---- the page --------------------------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; --ink: %(ink)s; --muted: %(muted)s; --grid: %(grid)s; --paper: %(paper)s; }
@media (prefers-color-scheme: dark) {
  :root { --ink: %(dark_ink)s; --muted: %(dark_muted)s; --grid: %(dark_grid)s; --paper: %(dark_paper)s; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1100px;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .3rem; }
p { color: var(--muted); margin: .2rem 0 .8rem; max-width: 75ch; }
img { width: 100%%; height: auto; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-size: .92rem; }
th, td { text-align: right; padding: .3rem .9rem; border-bottom: 1px solid var(--grid); white-space: nowrap;
         font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } td:first-child { color: var(--muted); }
.chip { display: inline-block; width: .8em; height: .8em; border-radius: .2em; margin-right: .4em; }
"""


def table(runs, first, rows):
    cells = "".join(f'<th><span class="chip" style="background:{colour}"></span>{html.escape(run.label)}</th>'
                    for run, colour in coloured(runs, LIGHT))
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in (name, *values)) + "</tr>"
                   for name, values in rows)
    return f'<div class="table"><table><tr><th>{first}</th>{cells}</tr>{body}</table></div>'


def render(plot, runs, theme):
    """PNG bytes, or None."""
    apply_theme(theme)
    figure = plot(runs, theme)
    if figure is None:
        return None
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=130)
    plt.close(figure)
    return png.getvalue()


def picture(light, dark, title):
    light_url, dark_url = ("data:image/png;base64," + base64.b64encode(png).decode() for png in (light, dark))
    return (f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark_url}">'
            f'<img alt="{html.escape(title)}" src="{light_url}"></picture>')


def build_page(runs, out):
    """Writes the PNGs (light) and returns the page's HTML."""
    parts = []
    for name, title, caption, plot in FIGURES:
        light = render(plot, runs, LIGHT)
        if light is None:
            continue
        (out / f"{name}.png").write_bytes(light)
        parts.append(f"<h2>{html.escape(title)}</h2><p>{html.escape(caption)}</p>"
                     + picture(light, render(plot, runs, DARK), title))
    summary = table(runs, "", [(name, [value(run) for run in runs]) for name, value in SUMMARY])
    different, alike = config_differences(runs)
    configs = (table(runs, "key", different) if different else "") + f"<p>{alike} other keys are the same in all runs.</p>"
    title = " · ".join(run.label for run in runs)
    style = STYLE % {**vars(LIGHT), **{f"dark_{key}": value for key, value in vars(DARK).items()}}
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{html.escape(title)}</title><style>{style}</style><h1>{html.escape(title)}</h1>"
            f"<p>train_gpt run comparison</p><h2>Summary</h2>{summary}<h2>What differs in the configs</h2>{configs}"
            + "".join(parts) + "</html>\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, as runs/<name>")
    parser.add_argument("--out", default="runs/compare", metavar="DIR", help="folder to write to (runs/compare)")
    options = parser.parse_args()
    try:
        runs = [read_run(folder) for folder in options.runs]
        out = pathlib.Path(options.out)
        out.mkdir(parents=True, exist_ok=True)
        page = out / "index.html"
        page.write_text(build_page(runs, out))
    except (InputError, OSError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    print(f"compare: {page} holds everything; its plots are beside it as PNG files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
