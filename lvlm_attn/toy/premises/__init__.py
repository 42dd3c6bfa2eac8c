"""Whether what the methods act on is there in the toy: ``python -m lvlm_attn.toy.premises``."""
