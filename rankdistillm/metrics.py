import math
from dataclasses import dataclass
@dataclass
class Figures:
    means: dict
def evaluate_run(run, qrels, metrics):
    tot = 0.
    for q in qrels:
        f = lambda gs: sum(g / math.log2(i + 2) for i, g in enumerate(gs[:10]))
        ideal = f(sorted(qrels[q].values(), reverse=True))
        tot += f([qrels[q].get(d, 0) for d in run[q].doc_ids]) / ideal if q in run and ideal else 0
    return Figures({metrics[0]: tot / len(qrels)})
