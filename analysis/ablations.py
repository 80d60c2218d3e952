# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Ablations of PLASLS
#
# How many components should have a step size of their own, should components with vanishing step sizes be merged, and
# what does the batch size change? Each part loads one sweep, tabulates it, plots it and tests it; no number below is
# written by hand. `make notebook OUT=results` shows the committed runs and trains nothing. `make sweep-splits`,
# `make sweep-merging` and `make sweep-batches` make runs of your own, in `runs`.
#
# `SOURCE` may also be `"results"`, `"wandb:ENTITY/PROJECT"` or `"offline:FOLDER"`.

# %%
import os

import pandas as pd
from IPython.display import Image, Markdown, display

from analysis import compare, exhibits, figures, formats, load, stats, words
from analysis.compare import LOSS, SCORE

SOURCE = os.environ.get("ANALYSIS_SOURCE", "runs")
pd.set_option("display.width", 120)


def show(*tables: formats.Table) -> None:
    for table in tables:
        display(Markdown(formats.markdown([table])))


def draw(figure) -> None:
    """The figure, then its caption as a text, which is also what a reader hears who does not see the figure."""
    png, caption = figures.apart(figure)
    display(Image(png, width=int(96 * figure.get_figwidth()), alt=caption), Markdown(formats.escaped(caption)))


def verdict(runs, measure) -> None:
    """What the paired tests say, in a sentence."""
    tested = compare.differences(runs, measure)
    if tested is not None:
        display(Markdown(words.verdict(tested)))


# %% [markdown]
# ## One tidy table
#
# There is a row for each logged line: the run's settings, then what was logged. `runs.table` has a row for each run.

# %%
runs = load(SOURCE, "splits")
frame = runs.frame
frame.groupby(["split", "seed"], observed=True)[["train/loss", "search/trials", "time/step"]].mean()

# %% [markdown]
# ## Splits (the paper's Fig. 9)
#
# Split 1 is ADAMSLS: one step size for the whole network. If there are more components, they are searched in turn, so
# each one is searched less often. Look for two things: does the training loss fall faster, and what do the further
# trials cost?

# %%
show(exhibits.means(runs))
draw(exhibits.convergence(runs))

# %%
show(*exhibits.differences(runs, LOSS), *exhibits.ranking(runs, LOSS))
verdict(runs, LOSS)
verdict(runs, SCORE)

# %% [markdown]
# The step sizes of all components of one run. If lines lie on one another, no search has told these components apart:
# under the joint test (`joint="always"`) a rejected move shrinks all of them unless one is to blame.

# %%
draw(exhibits.step_sizes(runs))

# %% [markdown]
# ## Merging (the paper's Fig. 2)
#
# With the strict Armijo test (`rounding=0`) step sizes can collapse near convergence, as rounding hides the decrease.
# Algorithm 1 then merges the component that is below the threshold with the next smallest one. The right panel shows
# how many components are left. A flat line means that nothing was merged; then the thresholds make no difference.

# %%
runs = load(SOURCE, "merging")
show(exhibits.means(runs))
merges = runs.table.groupby(runs.varied, sort=False, dropna=False)["search/merges"]
display(merges.agg(["mean", "min", "max"]).rename(index=words.level).rename_axis("merges a run", axis="columns"))
draw(exhibits.merging(runs))

# %%
draw(exhibits.one_component(runs))

# %%
show(*exhibits.differences(runs, LOSS))
verdict(runs, LOSS)

# %% [markdown]
# ## Batch sizes (the paper's Fig. 8)
#
# The axis counts samples, not steps: a batch of 64 makes half the steps of one of 32 with the same samples. A smaller
# batch makes more steps, but each search sees a noisier loss.

# %%
runs = load(SOURCE, "batches")
show(exhibits.means(runs))
draw(exhibits.by_batch(runs))

# %%
show(*exhibits.differences(runs, LOSS))
verdict(runs, LOSS)

# %% [markdown]
# ## What so many seeds can see
#
# The table shows the least effect that a paired t-test finds four times out of five. (An effect is the mean difference,
# in standard deviations of the differences.) Beside it is the least p that an exact sign-flip test can give. With five
# seeds and one task no exact test can be significant at 5 %, whatever the differences are.

# %%
pd.DataFrame(
    {
        "seeds": range(2, 11),
        "detectable effect, 80 % power": [stats.detectable_effect(n) for n in range(2, 11)],
        "least p of the exact test": [2 / 2**n for n in range(2, 11)],
    }
).set_index("seeds").round(3)
