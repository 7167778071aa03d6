"""tometune: does more instruction data make this model better?"""

__version__ = "0.1.0"
