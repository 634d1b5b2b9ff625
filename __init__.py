"""TRUST Unlearn as a ComfyUI node pack; anywhere else this file offers nothing and loads nothing.

ComfyUI names this module after its path, so every import below it is relative.
"""

try:
    import comfy.utils  # noqa: F401
except ImportError:
    pass
else:
    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    WEB_DIRECTORY = "./web"
    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
