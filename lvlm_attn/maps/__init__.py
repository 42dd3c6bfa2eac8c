"""From attention on image tokens to pixels: where a token lies, maps, regions, crops and masked views."""
