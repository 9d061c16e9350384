"""Stage two and the joint stage: model, masks, losses, compared methods, loops, evaluation."""
