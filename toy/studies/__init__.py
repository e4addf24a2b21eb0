"""The studies behind the figures: one module per `python -m toy` command, named like it.

Each module has its setting (problem, group sizes, seeds) as constants and one public function

    study(progress: Progress) -> Study

`progress` wraps an iterable and hands its items on: `for mean in progress(means, "gaussian"):`. The command shows a
bar on stderr; `silent` shows nothing. `toy.studies.study` has `Study`, `Progress`, `silent` and `write`, and
`toy.plots` the figures' house style.
"""
