"""AUTOMATIC1111 and Forge: their model lent to the engine, diffs at generation, tab and API.

Written against both hosts' own modules; `host.py` says what a host must offer, `a1111.py` and
`forge.py` say how each does. The door is `scripts/trust_unlearn.py`.

Hosts:
host            what a host must offer; `current()` is the one we run in
a1111           AUTOMATIC1111
forge           Forge
neo             Forge Neo
merging         our offsets as Forge's patches
which_ui        which web UI this is
unsupported_ui  the tab in others: one sentence
text_encoder    the host's text encoding

Diffs at generation:
script          the accordion, and the hooks that put diffs on and take them off
applying        load, check, and stop what would go on without them
asked_diffs     a diff asked for: name and strength
proof           a diff counts as applied when it is found in the weights
always_on       the diffs on every picture
redraw_guard    nothing is drawn past those

Jobs:
jobs            one at a time, with progress and interrupt
unlearn_job     unlearn
audit_job       audit
estimate        time and memory beforehand
prompts_job     which prompts a run would use
speed           how fast the checkpoint is here
runs            where stopped and finished runs are kept

The tab and the API:
callbacks       what is registered with the host, and undone
tab             the tab TRUST
tab_demo        its button for the demo model
tab_expected    the line that says what a run would take
tab_files       labels, notes, exports, audit
tab_jobs        the list of jobs
tab_always_on   the diffs on every picture
form            the fields as values, presets, and the spec
job_status      what is shown of a job
one_line        messages of one line
wording         the engine's errors in the tab's words
settings        our section of the host's settings
api             routes under /trust/v1
folders         where files lie

The demo model:
demo_model      laid out as a checkpoint
demo_a1111      what AUTOMATIC1111 has to know of it
demo_forge      what Forge has to know of it
"""
