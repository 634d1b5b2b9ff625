"""The command line. The only place that prints.

main          all commands, errors and exit codes
unlearn       `unlearn` and `demo`
list_prompts  `prompts`
generate      `generate`
audit         `audit`
diff          `diff info|verify|apply|merge|export|annotate|fingerprint`
runs          `runs`, and stopping without loss
bench         `bench speed`
flags         how commands and shared flags are declared
inputs        what flags name, read and checked before a model is loaded
console       printing in any encoding, to readers who leave
progress      progress bars
wording       errors that call settings by their flags
"""
