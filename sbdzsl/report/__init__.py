"""What people look at: pages, pictures and lists made of verdicts, evaluations and trainings.

html            an audit's report; `counting`, `places`, `drift`, `figures` count it, `summary` is what they found
gallery         judged images as pictures; `overlay` draws them, `cards` says what stands beside them
alerts, diff    the rows that need a person; what differs between two audits
groups_page, strangers    unseen images by what they resemble
evaluation_page, detector_plots    how good a bundle is; training_page, label_budget    how it came about
plots, formats  drawing and writing of figures
"""
