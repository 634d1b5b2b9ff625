"""What both doors show and share, and no host knows.

run_report      what a run has done, in words
prompt_lists    what it asks of a model, prompt by prompt
before_after    what is seen in its test pictures
subjects        which pictures these are, and how they are drawn
draw_and_judge  drawing them on a loaded model and having them judged
pictures        before/after sheets, the map of concept neurons
charts          curves of effect and harm
wording         lists and times in words
"""
