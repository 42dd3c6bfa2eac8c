"""The commands of `lvlm-attn`, one file per matter."""
