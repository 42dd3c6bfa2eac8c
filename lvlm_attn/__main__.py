"""`python -m lvlm_attn` is `lvlm-attn`, also under `accelerate launch -m` and `torchrun -m`."""

from lvlm_attn.cli.main import main

if __name__ == "__main__":
    main()
