"""Official scores of folders of masks: pairs of files, scores, summaries, comparison, and the HTML report."""
