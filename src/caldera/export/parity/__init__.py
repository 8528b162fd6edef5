"""One model in two implementations: compared stage by stage."""
