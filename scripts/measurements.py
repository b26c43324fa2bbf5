#!/usr/bin/env python3
"""Draws what the measurements of runs show: one PNG a measurement, for those that the runs have.

    scripts/measurements.py RUN ... [--out DIR] [--role q]

RUN is a run folder (runs/<name>) with metrics.jsonl; docs/measurements.md explains its fields. Needs matplotlib.
"""

import argparse
import math
import pathlib
import sys

from compare import LIGHT, InputError, apply_theme, coloured, label_ends, new_figure, number, read_run

import matplotlib.pyplot as plt
import numpy as np

# ---- reading ---------------------------------------------------------------------------------------------------------


def records(run, field, **wanted):
    """(step, record) of a list field, of the records whose keys have the wanted values."""
    for line in run.lines:
        for record in line.get(field) or []:
            if all(record.get(key) == value for key, value in wanted.items()):
                yield line["step"], record


def by_step(run, field, value, **wanted):
    """Steps, and mean, least and greatest over the records of each; value is a key or a function of a record."""
    get = value if callable(value) else lambda record: number(record.get(value))
    groups = {}
    for step, record in records(run, field, **wanted):
        got = get(record)
        if not math.isnan(got):
            groups.setdefault(step, []).append(got)
    steps = sorted(groups)
    rows = [(np.mean(groups[step]), min(groups[step]), max(groups[step])) for step in steps]
    return np.array(steps, dtype=float), np.array(rows, dtype=float).reshape(-1, 3)


def has(runs, field):
    return any(line.get(field) for run in runs for line in run.lines)


def add_records_of_updates(run):
    """Older runs have what belongs to an update in lists of their own; newer ones in the rows of `spectrum`. Here both get
    the lists."""
    for line in run.lines:
        rows = line.get("spectrum") or []
        whole = {(row["layer"], row["role"], row["of"]): row for row in rows if row["head"] is None}
        line.setdefault("orthogonality", [dict(row, min=row["sigma_min"], max=row["sigma_max"])
                                          for row in rows if "error" in row])
        line.setdefault("blocks", [
            {"layer": layer, "role": role, "update_rms": row["step_rms"], "decay_bound": row["decay_bound"],
             "weight_rms": whole[layer, role, "weight"]["rms"],
             "spectral_norm": whole[layer, role, "weight"]["sigma_max"]}
            for (layer, role, of), row in whole.items()
            if of == "update" and "step_rms" in row and (layer, role, "weight") in whole])
    return run


def mean_of(key):
    """The mean of a record's list, such as the two sides of an alignment."""
    def get(record):
        values = [number(value) for value in record.get(key) or []]
        values = [value for value in values if not math.isnan(value)]
        return sum(values) / len(values) if values else math.nan
    return get


# ---- drawing ---------------------------------------------------------------------------------------------------------


def draw_band(axes, steps, rows, colour, style="-", band=True):
    """The mean over records as a line, and their range as a band."""
    if not len(steps):
        return
    axes.plot(steps, rows[:, 0], style, color=colour, linewidth=1.8, marker="o", markersize=2.5)
    if band:
        axes.fill_between(steps, rows[:, 1], rows[:, 2], color=colour, alpha=0.12, linewidth=0)


def draw_bands(axes, runs, theme, field, value, title, style="-", band=True, **wanted):
    ends = []
    for run, colour in coloured(runs, theme):
        steps, rows = by_step(run, field, value, **wanted)
        draw_band(axes, steps, rows, colour, style, band)
        if len(steps):
            ends.append((steps[-1], rows[-1, 0], f"{rows[-1, 0]:.3g}", colour))
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.margins(x=0.03)
    label_ends(axes, ends)


def use_log_axis(axes):
    """Logarithmic, unless nothing is there that has a logarithm."""
    heights = [y for line in axes.get_lines() for y in np.ravel(line.get_ydata())] + \
              [patch.get_height() for patch in axes.patches]
    if any(y > 0 for y in heights):
        axes.set_yscale("log")
    elif not heights:
        axes.annotate("not in these runs", (0.5, 0.5), xycoords="axes fraction", ha="center", color="gray")


def style_legend(axes, theme, styles, **options):
    handles = [plt.Line2D([], [], color=theme.muted, linestyle=style) for style, _ in styles]
    axes.legend(handles, [name for _, name in styles], **options)


# ---- figures: each takes (runs, theme, role) and returns a figure ------------------------------------------------------


def plot_logits(runs, theme, _role):
    figure, grid = new_figure(runs, theme, 1, 3, (13, 4))
    share, distance, place = grid[0]
    draw_bands(share, runs, theme, "logits", "above", "Share of logits above τ, by heads")
    share.set_yscale("symlog", linthresh=1e-6)
    share.set_ylim(bottom=0)
    for run, colour in coloured(runs, theme):
        points = [(record["query"] - record["key"], number(record["max"])) for _, record in records(run, "logits")]
        if points:
            x, y = zip(*points)
            distance.scatter(x, y, s=9, color=colour, alpha=0.5, linewidth=0)
        last = max((step for step, _ in records(run, "logits")), default=None)
        for step, record in records(run, "logits"):
            if step == last:
                place.scatter(record["key"], record["query"], s=24, color=colour, alpha=0.7, linewidth=0)
    distance.set_title("MaxLogit, by distance of query and key")
    distance.set_xlabel("query position - key position")
    distance.set_ylabel("MaxLogit of the head")
    place.set_title("Its token pairs in the last step")
    place.set_xlabel("key position")
    place.set_ylabel("query position")
    return figure


def plot_clips(runs, theme, _role):
    """What QK-Clip has done to each head: how often, and the product of its factors, had the optimizer not worked against
    it."""
    figure, grid = new_figure(runs, theme, 1, 3, (13, 4))
    ever, times, product = grid[0]
    for run, colour in coloured(runs, theme):
        heads, steps, shares = {}, [], []
        logits = run.head_logits()
        if logits is None:
            continue
        for step, clip in records(run, "clipped"):
            gammas = heads.setdefault((clip["layer"], clip["head"]), [])
            gammas.append(number(clip["gamma"]))
            if len(gammas) == 1:
                steps.append(step)
                shares.append(len(heads) / logits[1][0].size)
        ever.step(steps, shares, color=colour, linewidth=1.8, where="post")
        names = [f"{layer}.{head}" for layer, head in sorted(heads)]
        times.bar(names, [len(heads[key]) for key in sorted(heads)], color=colour, alpha=0.7)
        product.bar(names, [math.prod(heads[key]) for key in sorted(heads)], color=colour, alpha=0.7)
    ever.set_title("Share of heads ever clipped")
    ever.set_xlabel("step")
    ever.set_ylim(bottom=0)
    times.set_title("Times clipped, by layer.head")
    product.set_title("Product of all γ of the head")
    use_log_axis(product)
    for axes in (times, product):
        axes.tick_params(axis="x", rotation=90)
        axes.margins(x=0.02)
    return figure


def plot_logit_bound(runs, theme, _role):
    figure, grid = new_figure(runs, theme, 1, 3, (13, 4))
    bound, tight, norms = grid[0]
    draw_bands(bound, runs, theme, "logit_bound", "bound", "Bound of the logits, by heads")
    for run, colour in coloured(runs, theme):
        bound.plot(run.step, run.series("max_abs_logit"), "--", color=colour, linewidth=1)
    use_log_axis(bound)
    style_legend(bound, theme, (("-", "bound, mean over heads"), ("--", "largest |logit|")), loc="best")
    draw_bands(tight, runs, theme, "logit_bound", "tightness", "Tightness: largest |logit| / bound")
    draw_bands(norms, runs, theme, "logit_bound", "q_norm", "Spectral norms of W_q and W_k")
    draw_bands(norms, runs, theme, "logit_bound", "k_norm", "Spectral norms of W_q and W_k", "--", False)
    style_legend(norms, theme, (("-", "W_q"), ("--", "W_k")), loc="best")
    return figure


def plot_collision(runs, theme, role):
    figure, grid = new_figure(runs, theme, 1, 3, (13, 4))
    growth, square, aligned = grid[0]
    for run, colour in coloured(runs, theme):
        pairs = [(p, r) for _, record in records(run, "collision", role=role)
                 for p, r in zip(record.get("predicted") or [], record.get("realised") or [])
                 if p is not None and r is not None]
        if pairs:
            x, y = np.array(pairs).T
            growth.scatter(x, y, s=7, color=colour, alpha=0.4, linewidth=0)
    low, high = growth.get_xlim()
    growth.plot([low, high], [low, high], color=theme.muted, linewidth=0.8, zorder=0)
    growth.set_title(f"W_{role}: change of the top σ in a step")
    growth.set_xlabel("predicted: -lr (s c + wd σ)")
    growth.set_ylabel("realised")
    draw_bands(square, runs, theme, "collision", "relative", "Collisions: mean of c² over chance", role=role)
    use_log_axis(square)
    draw_bands(aligned, runs, theme, "collision", mean_of("align_update"), "Alignment of the top subspaces", role=role,
               band=False)
    draw_bands(aligned, runs, theme, "collision", mean_of("align_momentum"), "Alignment of the top subspaces", "--",
               False, role=role)
    style_legend(aligned, theme, (("-", "W with the update"), ("--", "W with the momentum")), loc="best")
    return figure


def plot_shadow(runs, theme, role):
    figure, grid = new_figure(runs, theme, 1, 3, (13, 4))
    quantities = (("effective_rank", "Effective rank of the update"), ("rms", "RMS of the update"),
                  ("sigma_change", "Predicted change of σ₁"))
    for axes, (key, title) in zip(grid[0], quantities):
        for optimizer, style in (("muon", "-"), ("adamw", "--")):
            draw_bands(axes, runs, theme, "shadow", key, f"W_{role}: {title}", style, False, role=role,
                       optimizer=optimizer)
    style_legend(grid[0][0], theme, (("-", "Muon in the shadow"), ("--", "AdamW in the shadow")), loc="best")
    return figure


def plot_orthogonality(runs, theme, role):
    figure, grid = new_figure(runs, theme, 1, 3, (13, 4))
    interval, error, below = grid[0]
    draw_bands(interval, runs, theme, "orthogonality", "max", "", band=False, role=role)
    draw_bands(interval, runs, theme, "orthogonality", "min", f"W_{role}: least and greatest σ of O",
               "--", False, role=role)
    interval.axhline(1, color=theme.muted, linewidth=0.8)
    draw_bands(error, runs, theme, "orthogonality", "error", "‖O Oᵀ - I‖, by layers", role=role)
    draw_bands(below, runs, theme, "orthogonality", "below_half", "Share of σ below 0.5", role=role)
    return figure


def plot_momentum(runs, theme, role):
    figure, grid = new_figure(runs, theme, 1, 3, (13, 4))
    cosine, noise, drift = grid[0]
    draw_bands(cosine, runs, theme, "momentum", "cosine", f"W_{role}: cosine of M and G", role=role)
    draw_bands(noise, runs, theme, "momentum", "noise", "Variance over micro-batches / ‖G‖²", role=role)
    use_log_axis(noise)
    draw_bands(drift, runs, theme, "momentum", mean_of("drift"), "", band=False, role=role)
    draw_bands(drift, runs, theme, "momentum", mean_of("gradient_alignment"),
               "Alignment of M's top subspace", "--", False, role=role)
    style_legend(drift, theme, (("-", "with that of the step before"), ("--", "with the gradient's")), loc="best")
    return figure


def plot_blocks(runs, theme, role):
    figure, grid = new_figure(runs, theme, 1, 3, (13, 4))
    updates, weights, norm = grid[0]
    draw_bands(updates, runs, theme, "blocks", "update_rms", f"W_{role}: RMS of the update", role=role)
    draw_bands(weights, runs, theme, "blocks", "weight_rms", f"W_{role}: RMS of the weights", role=role)
    draw_bands(norm, runs, theme, "blocks", "spectral_norm", "", role=role)
    draw_bands(norm, runs, theme, "blocks", "decay_bound", f"W_{role}: ‖W‖₂ and its decay bound",
               "--", False, role=role)
    use_log_axis(norm)
    style_legend(norm, theme, (("-", "‖W‖₂"), ("--", "bound")), loc="best")
    return figure


FIGURES = {"logits": plot_logits, "clipped": plot_clips, "logit_bound": plot_logit_bound,
           "collision": plot_collision, "shadow": plot_shadow, "orthogonality": plot_orthogonality,
           "momentum": plot_momentum, "blocks": plot_blocks}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--out", default="runs/measurements", metavar="DIR", help="folder of the PNG files")
    parser.add_argument("--role", default="q", help="kind of matrix, such as q, k, v, o, up (q)")
    options = parser.parse_args()
    try:
        runs = [add_records_of_updates(read_run(folder)) for folder in options.runs]
    except InputError as error:
        sys.exit(f"measurements: {error}")
    out = pathlib.Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    apply_theme(LIGHT)
    for field, plot in FIGURES.items():
        if not has(runs, field):
            print(f"{field}: not in these runs")
            continue
        figure = plot(runs, LIGHT, options.role)
        figure.savefig(out / f"{field}.png", dpi=110)
        plt.close(figure)
        print(out / f"{field}.png")


if __name__ == "__main__":
    main()
