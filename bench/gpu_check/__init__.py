"""What only a GPU can tell, checked on one without network: `python -m bench.gpu_check --help`.

`pack` lays out all that travels, wheels included, in one folder of at most 64 MiB; `run` does part
by part there, each of at most four minutes, and goes on where it was. Nothing of ComfyUI is kept in
this repository: `pack` takes it from the checkout that COMFYUI_PATH names.

pack           lays out what travels
parts          what is checked there
comfy_picture  a picture by ComfyUI without and with a diff
__main__       the command
"""
